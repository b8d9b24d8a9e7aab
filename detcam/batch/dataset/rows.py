"""Rows of the dataset from an explanation or an error, with the metrics that need no labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from detcam.batch.dataset import schema
from detcam.batch.dataset.heatmap import pack
from detcam.batch.items import Item
from detcam.batch.sources.storage import text
from detcam.evaluate.metrics.localisation import LOCALISATION, NEED_MASKS, Case, energy_in_box
from detcam.explanation import Explanation

if TYPE_CHECKING:
    import pyarrow as pa

ALWAYS = "energy_in_box"  # a column of every dataset
METRICS = {m.name: function for m, function in LOCALISATION if m.name not in {*NEED_MASKS, ALWAYS}}
SIDE = 1024  # pixels: heatmaps of larger images are measured at this size, at which they are still smooth
AT_ONCE = 32 * 2**20  # pixels of heatmaps in memory: an image may have 300 objects


@dataclass(frozen=True)
class Batch:
    """Rows of some images of a chunk."""

    chunk: int  # number of the chunk
    objects: pa.Table  # rows of `detcam.batch.dataset.schema.objects`
    pictures: pa.Table  # rows of `detcam.batch.dataset.schema.pictures`, one for each image
    written: int | None = None  # bytes of the chunk's shards if the worker wrote them itself; None: not written yet

    @classmethod
    def of(cls, chunk: int, outcomes: Iterable[Outcome], metrics: tuple[str, ...]) -> Batch:
        """The rows of some images, in their order."""
        import pyarrow as pa

        outcomes = list(outcomes)
        objects = [row for outcome in outcomes for row in outcome.objects]
        return cls(
            chunk,
            pa.Table.from_pylist(objects, schema.objects(metrics)),
            pa.Table.from_pylist([outcome.picture for outcome in outcomes], schema.pictures()),
        )

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """The concatenated rows of several batches of a chunk."""
        import pyarrow as pa

        objects, pictures = (
            pa.concat_tables(tables) for tables in zip(*((p.objects, p.pictures) for p in parts), strict=True)
        )
        return cls(parts[0].chunk, objects.combine_chunks(), pictures.combine_chunks())


@dataclass(frozen=True)
class Outcome:
    """The row of an image, and the rows of its objects."""

    picture: dict[str, Any]
    objects: list[dict[str, Any]] = field(default_factory=list)


def explained(item: Item, explanation: Explanation, seconds: float, worker: str, metrics: Sequence[str]) -> Outcome:
    """The rows of an image that was explained."""
    height, width = explanation.geometry.source
    count = len(explanation)
    facts = {"width": width, "height": height, "objects": count, "seconds": seconds}
    picture = _picture(item, worker, "ok" if count else "empty", **facts)
    return Outcome(picture, list(_objects(item, explanation, metrics)))


def failed(item: Item, reason: str, worker: str) -> Outcome:
    """The row of an image that could not be read or explained."""
    return Outcome(_picture(item, worker, "error", error=text(" ".join(reason.split()))))


def _picture(item: Item, worker: str, status: str, **facts: Any) -> dict[str, Any]:
    known = {"key": item.key, "uri": text(item.uri), "status": status, "worker": worker}
    return {"error": None, "width": None, "height": None, "objects": 0, "seconds": 0.0, **known, **facts}


def _objects(item: Item, explanation: Explanation, metrics: Sequence[str]) -> Iterable[dict[str, Any]]:
    geometry, settings, objects = explanation.geometry, explanation.settings, explanation.objects
    height, width = geometry.source
    common = {
        "key": item.key, "uri": text(item.uri), "width": width, "height": height, "method": settings["method"],
        "layers": ",".join(settings["layers"]), "target": settings["target"],
        **dict(zip(schema.GEOMETRY, (*geometry.resized, *geometry.pad, *geometry.network), strict=True)),
    }  # fmt: skip
    measured = measure(explanation, metrics)
    boxes, scores, class_ids = objects.boxes.tolist(), objects.scores.tolist(), objects.class_ids.tolist()
    index, levels, cells = objects.index.tolist(), objects.level.tolist(), objects.cells.tolist()
    for i in range(len(explanation)):
        yield {
            **common, "object": i, **dict(zip(("x1", "y1", "x2", "y2"), boxes[i], strict=True)),
            "label": objects.labels[i], "class_id": class_ids[i], "score": scores[i],
            "index": index[i], "level": levels[i], "cell_row": cells[i][0], "cell_column": cells[i][1],
            **dict(zip(schema.HEATMAP, astuple(pack(explanation.maps[i].float().cpu().numpy())), strict=True)),
            "note": explanation.notes[i], **{name: values[i] for name, values in measured.items()},
        }  # fmt: skip


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
