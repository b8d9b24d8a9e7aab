"""Metrics of a heatmap by the model's box: columns of the dataset that need no labels."""

import math
from collections.abc import Iterator, Sequence

import torch

from detcam.evaluate.metrics.localisation import LOCALISATION, NEED_MASKS, Case, energy_in_box
from detcam.explanation import Explanation

ALWAYS = "energy_in_box"  # a column of every dataset
METRICS = {m.name: function for m, function in LOCALISATION if m.name not in {*NEED_MASKS, ALWAYS}}
SIDE = 1024  # pixels: heatmaps of larger images are measured at this size, at which they are still smooth
AT_ONCE = 32 * 2**20  # pixels of heatmaps in memory: an image may have 300 objects


def measure(explanation: Explanation, names: Sequence[str]) -> dict[str, list[float | None]]:
    """`energy_in_box` and the metrics `names` of every object, by the model's boxes; None where not defined.

    For images up to 1024 pixels a side the energy is that of `Explanation.energy_in_box`.
    """
    functions = {ALWAYS: energy_in_box, **{name: METRICS[name] for name in names}}
    values: dict[str, list[float | None]] = {name: [] for name in functions}
    for case in _cases(explanation):
        blank = case.heatmaps.amax(dim=(1, 2)) <= 0
        for name, function in functions.items():
            results = torch.where(blank, torch.nan, function(case)).tolist()
            values[name].extend(None if math.isnan(value) else value for value in results)
    return values


def _cases(explanation: Explanation) -> Iterator[Case]:
    height, width = explanation.geometry.source
    shrink = min(SIDE / max(height, width), 1)
    size = max(round(height * shrink), 1), max(round(width * shrink), 1)
    scale = explanation.boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    step = max(AT_ONCE // (size[0] * size[1]), 1)
    for first in range(0, len(explanation), step):
        chosen = list(range(first, min(first + step, len(explanation))))
        heat = explanation.render(chosen, size, torch.float32)
        yield Case(heat, explanation.boxes[chosen] * scale)
