"""Explanation: the objects of one image, a heatmap for each, and the methods to render, draw and save them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam import render, saved
from detcam.conversions import Conversions
from detcam.errors import InputError, nearest, plain
from detcam.geometry import Geometry
from detcam.render.canvas import common_canvas, resized, scale_together
from detcam.render.energy import energies
from detcam.render.overlay import SHEET, heated
from detcam.types import Check, Objects

NORMALIZE = ("object", "image", "none")
LIMIT = 24  # overlays on a contact sheet, at most; the objects with the highest scores come first


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
        origin: see `detcam.models.versions.Origin.facts`; None after loading.
        tiles: for each object (top, left, height, width) of its tile in source pixels, placed like `geometry`; or None.
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
    origin: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    tiles: list[tuple[int, int, int, int]] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}([{plain(', '.join(self.titles))}], notes={self.notes}, settings={self.settings})"

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
        masks = self.objects.masks
        if masks is not None:
            if self.tiles is None:
                return masks
            whole = masks.new_zeros(len(self), *self.geometry.source)
            for mask, into, (top, left, height, width) in zip(masks, whole, self.tiles, strict=True):
                into[top : top + height, left : left + width] = mask
            return whole
        logits = self.objects.mask_logits
        if logits is None:
            return None
        height, width = self.geometry.source
        shapes = [(logits.shape[1], logits.shape[2])] * len(logits)
        full = self._placed(logits, shapes, range(len(self)), (height, width))
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
            maps, normalize = scale_together(maps), "none"
        stack, shapes = common_canvas([maps[i] for i in chosen], self.boxes.device)
        return self._placed(stack, shapes, chosen, size, normalize=normalize, relu=True, dtype=dtype)

    def placement(self, i: int) -> Geometry:
        """The placement of the image, or of the tile of object `i`, in the network's input."""
        return self.geometry if self.tiles is None else replace(self.geometry, crop=self.tiles[i])

    def _placed(
        self, maps: Tensor, shapes: list[tuple[int, int]], chosen: Sequence[int], size: tuple[int, int], **options: Any
    ) -> Tensor:
        """Maps of some objects, of `shapes` before padding, over the image [n, *size]; 0 where the network saw none."""
        groups: dict[Geometry, list[int]] = {}
        for place, i in enumerate(chosen):
            groups.setdefault(self.placement(i), []).append(place)
        whole: Tensor | None = None
        for geometry, places in groups.items():
            rows, columns = geometry.seen(size)
            down, across = (source / side for source, side in zip(geometry.source, size, strict=True))
            box = (columns.start * across, rows.start * down, columns.stop * across, rows.stop * down)
            windows = maps.new_tensor([geometry.window(shapes[place], box) for place in places])
            heat = resized(maps[places], windows, (rows.stop - rows.start, columns.stop - columns.start), **options)
            if heat.shape == (len(chosen), *size):
                return heat
            whole = heat.new_zeros(len(chosen), *size) if whole is None else whole
            whole[places, rows, columns] = heat
        return resized(maps, maps[:, 0], size, **options) if whole is None else whole

    def overlay(
        self, i: int | None = None, alpha: float = 0.75, colormap: str = "inferno", label: str | None = None
    ) -> np.ndarray:
        """The heatmap of one object, or of several, over the image, with boxes and labels: [H, W, 3] uint8 RGB.

        Of several, the hottest is in front; each is normalised separately.

        Args:
            i: position of the object; None: all objects.
            alpha: opacity of the hottest pixel, in [0, 1].
            colormap: a key of `detcam.render.COLORMAPS`.
            label: only the objects of this class, in place of `i`.

        Raises:
            InputError: for a class that no object has, `i` with `label`, another opacity or colour map.
        """
        if label is None:
            return self._drawn(self.image, range(len(self)) if i is None else [i], alpha, colormap)
        chosen = [place for place, name in enumerate(self.labels) if name == label]
        if i is not None or not chosen:
            reason = nearest(label, self.labels) if i is None else "give one of i and label"
            raise InputError(f"overlay: label {label!r}: {reason}")
        return self._drawn(self.image, chosen, alpha, colormap)

    def _drawn(
        self, picture: np.ndarray, chosen: Sequence[int], alpha: float = 0.75, colormap: str = "inferno"
    ) -> np.ndarray:
        """The heat of some objects with their boxes over the source image, of whatever size, on a copy."""
        maps, shapes = common_canvas([scale_together([self.maps[i]])[0] for i in chosen], self.boxes.device)
        windows, places = [], []
        for i, shape in zip(chosen, shapes, strict=True):
            rows, columns = self.placement(i).seen(picture.shape[:2])
            windows.append(self.placement(i).window(shape))
            places.append((columns.start, rows.start, columns.stop, rows.stop))
        bounds, regions = (self.boxes.new_tensor(each).view(-1, 4) for each in (windows, places))
        return self._boxed(heated(picture, maps, bounds, regions, alpha, colormap), chosen)

    def _boxed(self, picture: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
        """Draw boxes and labels of some objects on the source image, of whatever size, in place."""
        height, width = (now / source for now, source in zip(picture.shape[:2], self.geometry.source, strict=True))
        boxes = (self.boxes * self.boxes.new_tensor([width, height] * 2)).tolist()
        titles = self.titles
        for i in chosen:
            render.draw_box_on(picture, boxes[i], titles[i])
        return picture

    @property
    def titles(self) -> list[str]:
        """N class names with their scores, as drawn above the boxes."""
        return [f"{label} {score:.2f}" for label, score in zip(self.labels, self.scores.tolist(), strict=True)]

    def save(self, folder: str | os.PathLike[str], source: str | os.PathLike[str] | None = None) -> Path:
        """Write `explanation.json`, `heatmaps.npz`, `picture.jpg`, an overlay for each object and `contact.png`.

        `explanation.json` says in "made" what made it: the versions of the packages, the SHA-256 of the weights and of
        the image's pixels as they were read, and the date (ISO 8601, UTC), which alone differs from run to run.
        `heatmaps.npz` holds "heatmaps" [N, H, W] and the raw coarse maps "map_000" [h, w], "map_001", ..., all float32.
        Files are written to a temporary folder and moved into place at the end, so an error leaves no partial output.

        Args:
            folder: made if it does not exist.
            source: path or name of the image, shown in reports.

        Raises:
            OutputError: if the folder cannot be written.
        """
        document = self.to_dict() if source is None else {"source": str(source), **self.to_dict()}
        image = self.image if self.picture is None else self.picture
        pixels = hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        document["made"] = {**(self.origin or {}), "pixels": pixels, "date": now}
        for item, energy in zip(document["objects"], self.energy_in_box, strict=True):
            item["energy_in_box"] = None if energy is None else round(energy, 6)
        every = range(len(self))
        heatmaps = (self.render([i], dtype=torch.float32)[0].cpu().numpy() for i in every)
        overlays = (self.overlay(i) for i in every)
        maps = [raw.float().cpu().numpy() for raw in self.maps]
        return saved.save(Path(folder), document, heatmaps, maps, self.image, self.contact_sheet(), overlays)

    @property
    def energy_in_box(self) -> list[float | None]:
        """For each object the share of its heat that lies in its box, in [0, 1]; None for a blank map."""
        boxes, geometry = self.boxes, self.geometry
        if self.tiles:  # no heat lies outside the tile
            boxes = boxes - boxes.new_tensor([[left, top] * 2 for top, left, *_ in self.tiles])
            geometry = replace(geometry, source=self.tiles[0][2:], crop=None)
        shares = energies([scale_together([raw])[0] for raw in self.maps], boxes, geometry)
        return [None if math.isnan(share) else share for share in shares]

    def _check_facts(self, i: int) -> dict[str, Any]:
        facts = {name: fall if fall is None else round(fall, 6) for name, fall in asdict(self.checks[i]).items()}
        return {**facts, "passed": self.checks[i].passed, "text": self.checks[i].sentence()}

    def overview(self) -> np.ndarray:
        """The image with every box: [H, W, 3] uint8 RGB."""
        return self._boxed(self.image.copy(), range(len(self)))

    def contact_sheet(self) -> np.ndarray:
        """The image with every box, then the overlays of the first objects, at most LIMIT: [h, w, 3] uint8 RGB."""
        small = render.shrunk(self.image, SHEET)
        overlays = [self._drawn(small, [i]) for i in range(len(self))[:LIMIT]]
        return render.contact_sheet([self._boxed(small.copy(), range(len(self))), *overlays])

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
                    **({} if self.tiles is None else {"tile": list(self.tiles[i])}),
                    **({} if self.words is None else {"words": dict(self.words[i])}),
                    **({"check": self._check_facts(i)} if "checks" in self.__dict__ else {}),
                }
                for i in range(len(self))
            ],
        }
