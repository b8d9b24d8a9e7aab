"""Explanation: the objects of one image, a heatmap for each, and the methods to render, draw and save them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from detcam import ops, render, saved
from detcam.conversions import Conversions
from detcam.errors import InputError
from detcam.geometry import Geometry
from detcam.types import Check, Objects

NORMALIZE = ("object", "image", "none")


@dataclass(frozen=True)
class Explanation(Conversions):
    """The objects that a model detects in one image, with a heatmap for each of the pixels behind the prediction.

    Attributes:
        image: [H, W, 3] uint8 RGB, the source image for people.
        objects: the N objects, in the order of the library's predict call.
        maps: N raw coarse maps [h, w] float32 over the network's input, before ReLU and normalisation.
        notes: for each object None, or why its map is zero, shared or approximate.
        settings: the settings of the maps: model, method, layers, view, target, conf, iou, max_det.
        geometry: placement of the image in the network's input.
        checker: `Explainer.check` of the explainer; None after unpickling or loading.
        picture: [H, W, C] the source image as it was read, uint8, uint16 or float32; None after loading.
        shown: how `image` was made of it, e.g. of 16 bits or 4 channels; None: it has the same values.
    """

    image: np.ndarray = field(repr=False)
    objects: Objects = field(repr=False)
    maps: list[Tensor] = field(repr=False)
    notes: list[str | None]
    settings: dict[str, Any]
    geometry: Geometry = field(repr=False)
    checker: Callable[[Explanation], list[Check]] | None = field(default=None, repr=False, compare=False)
    picture: np.ndarray | None = field(default=None, repr=False, compare=False)
    shown: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "checker": None}  # the model does not travel with its explanations

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def boxes(self) -> Tensor:
        """[N, 4] float32 xyxy in source pixels."""
        return self.objects.boxes

    @property
    def scores(self) -> Tensor:
        """[N] float32 in [0, 1]."""
        return self.objects.scores

    @property
    def class_ids(self) -> Tensor:
        """[N] int64."""
        return self.objects.class_ids

    @property
    def labels(self) -> list[str]:
        """N class names."""
        return list(self.objects.labels)

    @property
    def words(self) -> tuple[tuple[tuple[str, float], ...], ...] | None:
        """For each object the words of its phrase and their scores in [0, 1], see `GroundingDinoAdapter`; or None."""
        return self.objects.words

    @cached_property
    def masks(self) -> Tensor | None:
        """[N, H, W] bool masks in source pixels, cropped to the boxes; None if the model has no masks."""
        if self.objects.masks is not None:
            return self.objects.masks
        logits = self.objects.mask_logits
        if logits is None:
            return None
        height, width = self.geometry.source
        shapes = [(logits.shape[1], logits.shape[2])] * len(logits)
        full = self._upsample(logits, shapes, (height, width), normalize="none", relu=False, dtype=torch.float32)
        x = torch.arange(width, device=full.device)  # Ultralytics crops by pixel index
        y = torch.arange(height, device=full.device)
        x1, y1, x2, y2 = (side[:, None] for side in self.boxes.unbind(1))
        columns, rows = (x >= x1) & (x < x2), (y >= y1) & (y < y2)
        return (full > 0) & rows[:, :, None] & columns[:, None, :]

    @cached_property
    def heatmaps(self) -> Tensor:
        """[N, H, W] float32 in [0, 1] at source resolution on the model's device, each map normalised separately."""
        return self.render(dtype=torch.float32)

    def check(self, i: int) -> Check:
        """Check the map of object `i` by intervention: does its score fall when its hottest pixels are hidden?

        The first call checks all objects, which share forwards.

        Raises:
            InputError: if the explanation was unpickled or loaded from a dataset, which leaves the model out.
            MethodError: for a family without candidates, regions or a probability.
        """
        return self.checks[i]

    @cached_property
    def checks(self) -> list[Check]:
        """The check of each object, see `check`."""
        if self.checker is None:
            raise InputError("check: the model was left out when this was saved or pickled: explain the image again")
        return self.checker(self)

    def render(
        self,
        objects: list[int] | None = None,
        size: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.uint8,
        normalize: str = "object",
    ) -> Tensor:
        """Render heatmaps: ReLU, normalisation at feature resolution, bilinear resize.

        Args:
            objects: positions of the objects, default all.
            size: (height, width) of the result in pixels, default that of the source image.
            dtype: torch.uint8 (0 to 255) or a floating dtype (0 to 1).
            normalize: "object": minimum to maximum of each map; "image": minimum to maximum over all objects of the
                image, which keeps their strengths comparable; "none": raw values, floating dtypes only.

        Returns:
            [len(objects), height, width] of `dtype`. A constant map becomes 0.

        Raises:
            InputError: for an unknown normalisation, "none" with an integer dtype, or a side below 1.
        """
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise InputError(f"size: expected (height, width) in pixels, got {size!r}")
        if normalize not in NORMALIZE:
            raise InputError(f"normalize: expected one of {NORMALIZE}, got {normalize!r}")
        if normalize == "none" and not dtype.is_floating_point:
            raise InputError(f"dtype: raw values need a floating dtype, got {dtype}: give another normalize or dtype")
        size = size or self.geometry.source
        chosen = list(range(len(self)) if objects is None else objects)
        maps = self.maps
        if normalize == "image":
            maps, normalize = _scale_together(maps), "none"
        stack, shapes = _common_canvas([maps[i] for i in chosen], self.boxes.device)
        heat = self._upsample(stack, shapes, size, normalize=normalize, relu=True, dtype=dtype)
        rows, columns = self.geometry.seen(size)
        if (rows, columns) != (slice(0, size[0]), slice(0, size[1])):
            inside = heat[:, rows, columns].clone()  # the network did not see what a processor cropped
            heat.zero_()[:, rows, columns] = inside
        return heat

    def _upsample(
        self,
        maps: Tensor,
        shapes: list[tuple[int, int]],
        size: tuple[int, int],
        normalize: str,
        relu: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        """Maps [N, h, w] over the network's input, with the size of each before padding in `shapes`, as [N, *size]."""
        n = len(maps)
        if not n:
            return torch.empty((0, *size), dtype=dtype, device=maps.device)
        integer = not dtype.is_floating_point and normalize == "none"
        windows = [self.geometry.window(shape) for shape in shapes]
        full = ops.cam_maps(
            maps[:, None],
            maps.new_ones(n, 1),
            size,
            torch.arange(n, device=maps.device),
            normalize=normalize,
            relu=relu,
            dtype=torch.float32 if integer else dtype,
            window=torch.tensor(windows, dtype=torch.float32, device=maps.device).view(n, 4),
        )
        return full.mul_(255).round_().to(dtype) if integer else full

    def overlay(self, i: int, alpha: float = 0.75, colormap: str = "inferno") -> np.ndarray:
        """The heatmap of object `i` over the image, with its box and label: [H, W, 3] uint8 RGB.

        Args:
            i: position of the object.
            alpha: opacity of the hottest pixel, in [0, 1].
            colormap: a key of `detcam.render.COLORMAPS`.
        """
        heat = self.heatmaps[i].cpu().numpy()
        picture = render.blend(self.image, heat, alpha, colormap)
        return render.draw_box(picture, self.boxes[i].tolist(), self._title(i))

    def _title(self, i: int) -> str:
        return f"{self.objects.labels[i]} {float(self.scores[i]):.2f}"

    def save(self, folder: str | os.PathLike[str], source: str | os.PathLike[str] | None = None) -> Path:
        """Write `explanation.json`, `heatmaps.npz`, `picture.jpg`, an overlay for each object and `contact.png`.

        `heatmaps.npz` holds "heatmaps" [N, H, W] and the raw coarse maps "map_000" [h, w], "map_001", ..., all float32.
        Files are written to a temporary folder and moved into place at the end, so an error leaves no partial output.

        Args:
            folder: made if it does not exist.
            source: path or name of the image, shown in reports.

        Raises:
            OutputError: if the folder cannot be written.
        """
        overlays = [self.overlay(i) for i in range(len(self))]
        document = self.to_dict() if source is None else {"source": str(source), **self.to_dict()}
        for item, energy in zip(document["objects"], self.energy_in_box, strict=True):
            item["energy_in_box"] = None if energy is None else round(energy, 6)
        arrays = {"heatmaps": self.heatmaps} | {f"map_{i:03d}": raw for i, raw in enumerate(self.maps)}
        numbers = {name: values.float().cpu().numpy() for name, values in arrays.items()}
        return saved.save(Path(folder), document, numbers, self.image, self.overview(), overlays)

    @property
    def energy_in_box(self) -> list[float | None]:
        """For each object the share of its heat that lies in its box, in [0, 1]; None for a blank map."""
        shares: list[float | None] = []
        for heat, box in zip(self.heatmaps, self.boxes.tolist(), strict=True):
            x1, y1, x2, y2 = (max(math.ceil(side - 0.5), 0) for side in box)  # pixels whose centre lies in the box
            total = float(heat.sum(dtype=torch.float64))
            shares.append(float(heat[y1:y2, x1:x2].sum(dtype=torch.float64)) / total if total else None)
        return shares

    def _check_facts(self, i: int) -> dict[str, Any]:
        facts = {name: fall if fall is None else round(fall, 6) for name, fall in asdict(self.checks[i]).items()}
        return {**facts, "passed": self.checks[i].passed, "text": self.checks[i].sentence()}

    def overview(self) -> np.ndarray:
        """The image with every box: [H, W, 3] uint8 RGB."""
        picture = self.image
        for i in range(len(self)):
            picture = render.draw_box(picture, self.boxes[i].tolist(), self._title(i))
        return picture

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels, as plain numbers and strings: the contents of `explanation.json`."""
        height, width = self.geometry.source
        return {
            "image": {"width": width, "height": height} | ({"shown": self.shown} if self.shown else {}),
            "geometry": {name: list(getattr(self.geometry, name)) for name in ("resized", "pad", "network")},
            "settings": self.settings,
            "normalization": "min-max per object at feature resolution, after ReLU and before the resize",
            "objects": [
                {
                    "label": self.objects.labels[i],
                    "class_id": int(self.class_ids[i]),
                    "score": round(float(self.scores[i]), 6),
                    "box": [round(v, 3) for v in self.boxes[i].tolist()],
                    "map": list(self.maps[i].shape),
                    "peak": float(self.maps[i].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).amax()),
                    "note": self.notes[i],
                    **({} if self.words is None else {"words": dict(self.words[i])}),
                    **({"check": self._check_facts(i)} if "checks" in self.__dict__ else {}),
                }
                for i in range(len(self))
            ],
        }


def _common_canvas(maps: list[Tensor], device: torch.device) -> tuple[Tensor, list[tuple[int, int]]]:
    """Pad maps of several sizes to one tensor [N, h, w] for a single operator call; also their original sizes.

    Smaller maps are padded with their border cells: a resize assumes the same beyond the border, and neither the
    minimum nor the maximum changes.
    """
    shapes = [(m.shape[0], m.shape[1]) for m in maps]
    height = max((h for h, _ in shapes), default=1)
    width = max((w for _, w in shapes), default=1)
    canvas = torch.empty((len(maps), height, width), dtype=torch.float32, device=device)
    for shape in set(shapes):
        places = [i for i, s in enumerate(shapes) if s == shape]
        stack = torch.stack([maps[i] for i in places]).float()
        beyond = (0, width - shape[1], 0, height - shape[0])
        canvas[places] = pad(stack[:, None], beyond, mode="replicate")[:, 0]
    return canvas, shapes


def _scale_together(maps: list[Tensor]) -> list[Tensor]:
    """ReLU, then one affine scaling for all maps of the image; it commutes with the bilinear resize."""
    positive = [torch.nan_to_num(m, nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0) for m in maps]
    if not positive:
        return positive
    low = torch.stack([m.amin() for m in positive]).amin()
    span = torch.stack([m.amax() for m in positive]).amax() - low
    return [(m - low) / span if span > 0 else torch.zeros_like(m) for m in positive]
