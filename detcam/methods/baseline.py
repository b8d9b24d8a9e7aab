"""Baselines: maps that do not use the model, for comparison with methods."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detcam.engine.sweeps import Probe
from detcam.methods.base import MOST, SweepMethod, parameter
from detcam.methods.perturbation import map_size


@dataclass(frozen=True)
class Noise(SweepMethod):
    """Uniform noise in [0, 1], different for every object and the same for every image."""

    seed: int = parameter(0, 0, MOST)

    name = "noise"
    formula = "uniform noise"
    source = "a baseline"
    reads = "nothing"
    passes = "1 F"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (len(probe.objects), *map_size(probe.size))
        return torch.rand(shape, generator=generator).to(probe.image.device)


class BoxGaussian(SweepMethod):
    """A Gaussian in the middle of the box, with a quarter of each side as its deviation."""

    name = "gaussian"
    formula = "exp(-((x - cx) / (w / 4))^2 / 2 - ((y - cy) / (h / 4))^2 / 2)"
    source = "a baseline"
    reads = "boxes"
    passes = "1 F"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        starts, stops = probe.objects.network_boxes[:, :2], probe.objects.network_boxes[:, 2:]
        middle, deviation = (starts + stops) / 2, ((stops - starts) / 4).clamp(min=1)  # [N, 2] x, y

        def along(axis: int, cells: int, pixels: int) -> Tensor:
            centres = (torch.arange(cells, device=middle.device) + 0.5) * (pixels / cells)
            return torch.exp(-(((centres - middle[:, axis, None]) / deviation[:, axis, None]) ** 2) / 2)

        height, width = map_size(probe.size)
        return along(1, height, probe.size[0])[:, :, None] * along(0, width, probe.size[1])[:, None, :]


class FilledBox(SweepMethod):
    """The box, filled: for each cell the share that lies inside."""

    name = "box"
    formula = "1 in the box, 0 outside"
    source = "a baseline"
    reads = "boxes"
    passes = "1 F"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        boxes = probe.objects.network_boxes

        def along(axis: int, cells: int, pixels: int) -> Tensor:
            starts = torch.arange(cells, device=boxes.device) * (pixels / cells)
            low = torch.maximum(starts, boxes[:, axis, None])
            high = torch.minimum(starts + pixels / cells, boxes[:, axis + 2, None])
            return (high - low).clamp(min=0) / (pixels / cells)

        height, width = map_size(probe.size)
        return along(1, height, probe.size[0])[:, :, None] * along(0, width, probe.size[1])[:, None, :]
