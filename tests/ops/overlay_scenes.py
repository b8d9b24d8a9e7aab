"""Random calls of `overlay`, and what they must paint, by a plain computation in double precision."""

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from detcam import ops
from detcam.ops import reference

NUDGE = 2e-5  # a heat this close to the middle between two colours may take either


@dataclass
class Scene:
    """Arguments of one call."""

    frames: Tensor  # [B, H, W, 3] uint8
    maps: Tensor  # [N, h, w]
    lut: Tensor  # [256, 3] uint8
    index: Tensor  # [N]
    boxes: Tensor | None = None  # [N, 4]
    window: Tensor | None = None  # [N, 4]

    def to(self, device: str) -> "Scene":
        return Scene(*(None if value is None else value.to(device) for value in vars(self).values()))

    def run(self, **options: object) -> Tensor:
        options = {"boxes": self.boxes, "window": self.window} | options
        return ops.overlay(self.frames, self.maps, self.lut, self.index, **options)

    def run_reference(self, opacity: float = 0.75, blend: str = "max") -> Tensor:
        maps, box, window = self.maps.float(), self.boxes, self.window
        return reference.overlay(self.frames, maps, self.lut, self.index, window, box, opacity, blend)


def random_scene(seed: int, dtype: torch.dtype = torch.float32, layout: str = "contiguous", **fixed: int) -> Scene:
    """Random shapes and values; boxes from hidden to larger than the frame."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    bounds = {"images": (1, 3), "rows": (1, 12), "columns": (1, 12), "objects": (1, 9), "height": (1, 60)}
    images, rows, columns, objects, height = (fixed.get(k, draw.randint(*v)) for k, v in bounds.items())
    width = fixed.get("width", draw.randint(1, 300))
    frames = torch.randint(256, (images, height, width, 3), dtype=torch.uint8)
    maps = torch.rand(objects, rows, columns).to(dtype)
    lut = torch.randint(256, (256, 3), dtype=torch.uint8)
    corners = (torch.rand(objects, 2, 2) * 1.4 - 0.2).sort(1).values * torch.tensor([width, height])
    scene = Scene(frames, maps, lut, torch.randint(images, (objects,)), corners.flatten(1))
    return lay_out(scene, layout)


def lay_out(scene: Scene, layout: str) -> Scene:
    frames, maps = scene.frames, scene.maps
    if layout == "planar":  # as a model holds its pictures
        frames = frames.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        maps = maps.mT.contiguous().mT
    if layout == "strided":
        frames = torch.stack([frames, 255 - frames], -2).flatten(-2)[..., ::2]
        maps = maps.repeat_interleave(2, 2)[..., ::2]
        return replace(scene, frames=frames, maps=maps, lut=scene.lut.repeat(1, 2)[:, :3])
    if layout == "expanded":
        frames, maps = frames[:1].expand_as(frames), maps[:1].expand_as(maps)
    return replace(scene, frames=frames, maps=maps)


def expected_heat(scene: Scene) -> np.ndarray:  # [N, H, W] float64
    """Heat of each object by loops over pixels of each axis, apart from the package's own arithmetic."""
    maps = np.clip(np.nan_to_num(scene.maps.cpu().double().numpy(), nan=0.0, posinf=1, neginf=0), 0, 1)
    height, width = scene.frames.shape[1:3]
    rows, columns = maps.shape[1:]
    result = np.zeros((len(maps), height, width))
    for n, cells in enumerate(maps):
        window = (0, 0, columns, rows) if scene.window is None else scene.window[n].tolist()
        box = (0, 0, width, height) if scene.boxes is None else scene.boxes[n].tolist()
        across = [interpolate(x, width, window[0], window[2], columns) for x in range(width)]
        stretched = np.stack([(1 - f) * cells[:, a] + f * cells[:, b] for a, b, f in across], 1)
        seen = np.array([box[0] <= x + 0.5 < box[2] for x in range(width)])
        for y in range(height):
            a, b, f = interpolate(y, height, window[1], window[3], rows)
            if box[1] <= y + 0.5 < box[3]:
                result[n, y] = seen * ((1 - f) * stretched[a] + f * stretched[b])
    return result


def interpolate(pixel: int, pixels: int, start: float, stop: float, cells: int) -> tuple[int, int, float]:
    at = min(max(start + (pixel + 0.5) / pixels * (stop - start) - 0.5, 0), cells - 1)
    return int(at), min(int(at) + 1, cells - 1), at - int(at)


def expected_range(scene: Scene, opacity: float = 0.75, blend: str = "max") -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest picture that heats within NUDGE of the true ones may give, before rounding."""
    heat, owners = expected_heat(scene), scene.index.tolist()
    lut = scene.lut.cpu().double().numpy()
    low = scene.frames.cpu().double().numpy().copy()
    high = low.copy()
    if blend == "max":
        frames = range(len(scene.frames))
        own = [[h for h, owner in zip(heat, owners, strict=True) if owner == b] for b in frames]
        heat = np.stack([np.max(h, 0) if h else np.zeros(low.shape[1:3]) for h in own])
        owners = list(frames)
    for layer, frame in zip(heat, owners, strict=True):
        cover = opacity * np.sqrt(layer)[..., None]
        choices = [lut[np.rint(np.clip(layer + d, 0, 1) * 255).astype(int)] for d in (-NUDGE, NUDGE)]
        low[frame] = low[frame] * (1 - cover) + np.minimum(*choices) * cover
        high[frame] = high[frame] * (1 - cover) + np.maximum(*choices) * cover
    return low, high


def assert_painted(result: Tensor, scene: Scene, **options: object) -> None:
    """Within one grey level, and exact where there is no heat."""
    low, high = expected_range(scene, **options)
    pixels = result.cpu().double().numpy()
    assert result.dtype == torch.uint8
    assert result.shape == scene.frames.shape
    assert result.is_contiguous()
    beyond = np.maximum(low - pixels, pixels - high).max(initial=0)
    assert beyond <= 1, f"{beyond} grey levels beyond the oracle"
    cold = np.ones(result.shape[:3], bool)
    for heat, frame in zip(expected_heat(scene), scene.index.tolist(), strict=True):
        cold[frame] &= heat == 0
    assert (pixels[cold] == scene.frames.cpu().numpy()[cold]).all()
