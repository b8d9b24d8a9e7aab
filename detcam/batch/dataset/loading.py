"""Reads a dataset back as explanations, one image at a time."""

import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, overload

import numpy as np
import torch

from detcam.batch.dataset.dataset import Dataset
from detcam.batch.dataset.folder import Folder
from detcam.batch.dataset.heatmap import Packed, unpack
from detcam.batch.dataset.schema import GEOMETRY, HEATMAP, require_arrow
from detcam.batch.sources.read import read_uri
from detcam.errors import ImageError, InputError
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.images import decode_image, displayable
from detcam.methods import view_of
from detcam.types import Objects

CACHED = 4  # shards in memory


class LoadedExplanation(Explanation):
    """An explanation from a dataset; the image is read again from `uri` on first access."""

    key: str  # key of the image in its source
    uri: str  # path or URL of the image

    def __init__(self, key: str, uri: str, **rest: Any) -> None:
        for name, value in {"key": key, "uri": uri, **rest}.items():
            object.__setattr__(self, name, value)  # as a frozen dataclass does, but without an image

    @cached_property
    def image(self) -> np.ndarray:
        """[H, W, 3] uint8 RGB; an ImageError if it cannot be read, or its size has changed."""
        image, _ = displayable(decode_image(read_uri(self.uri), self.uri))
        if image.shape[:2] != self.geometry.source:
            height, width = self.geometry.source
            raise ImageError(f"{self.uri} was {width} x {height} pixels when it was explained: restore that image")
        return image


class Loaded(Sequence[LoadedExplanation]):
    """The explanations of a dataset in the source's order, also of images without objects.

    Args:
        folder: path or URL that `detcam batch` wrote to.

    Attributes:
        manifest: content of `job.json`.
        keys: keys of the images.
        errors: for each image that failed: its key and the reason.

    Raises:
        InputError: if there is no dataset, or it is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        require_arrow()
        self._dataset = Dataset(Folder(folder))
        manifest = self._dataset.manifest()
        if manifest is None:
            raise InputError(f"{os.fspath(folder)} holds no job.json: give the --out of detcam batch")
        self.manifest = manifest
        self.keys: list[str] = []
        self.errors: dict[str, str] = {}
        self._places: list[tuple[int, int]] = []  # chunk, and row in its table of pictures
        for chunk in sorted(self._dataset.done()):
            table = self._dataset.pictures(chunk)
            columns = (table[name].to_pylist() for name in ("key", "status", "error"))
            for row, (key, status, error) in enumerate(zip(*columns, strict=True)):
                if status == "error":
                    self.errors[key] = error
                else:
                    self.keys.append(key)
                    self._places.append((chunk, row))
        self._shard = lru_cache(CACHED)(self._read)

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, which: int | str) -> LoadedExplanation: ...
    @overload
    def __getitem__(self, which: slice) -> list[LoadedExplanation]: ...
    def __getitem__(self, which: int | str | slice) -> LoadedExplanation | list[LoadedExplanation]:
        """The explanation of an image by index or key, or those of a slice; an IndexError or KeyError without it."""
        if isinstance(which, slice):
            return [self[i] for i in range(len(self))[which]]
        if isinstance(which, str):
            if which not in self._numbers:
                raise KeyError(self.errors.get(which, which))
            which = self._numbers[which]
        chunk, row = self._places[which]
        pictures, objects = self._shard(chunk)
        picture = pictures[row]
        return self._explanation(picture, objects.get(picture["key"], []))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {key: i for i, key in enumerate(self.keys)}

    def _read(self, chunk: int) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
        table = self._dataset.pictures(chunk)
        pictures = table.to_pylist()
        objects: dict[str, list[dict[str, Any]]] = {}
        for row in self._dataset.objects(chunk, table).to_pylist():
            objects.setdefault(row["key"], []).append(row)
        for picture in pictures:
            if picture["objects"] != len(objects.get(picture["key"], ())):
                raise InputError(f"{self._dataset.folder.name}: chunk {chunk} is incomplete: run the job again")
        return pictures, objects

    def _explanation(self, picture: dict[str, Any], rows: list[dict[str, Any]]) -> LoadedExplanation:
        source = picture["height"], picture["width"]
        geometry = Geometry(source, source, (0, 0), source)
        if rows:
            rh, rw, top, left, height, width = (rows[0][name] for name in GEOMETRY)
            geometry = Geometry(source, (rh, rw), (top, left), (height, width))
        return LoadedExplanation(
            key=picture["key"],
            uri=picture["uri"],
            objects=_objects(rows, geometry),
            maps=[torch.from_numpy(unpack(Packed(*(row[name] for name in HEATMAP)))) for row in rows],
            notes=[row["note"] for row in rows],
            settings=self._settings(rows),
            geometry=geometry,
        )

    def _settings(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        options = {k: v for k, v in self.manifest["options"].items() if k not in ("metrics", "save")}
        if not rows:
            return options
        shared = {name: rows[0][name] for name in ("method", "target")}
        view = view_of(shared["method"], options["layers"])
        return {**options, **shared, "layers": rows[0]["layers"].split(","), "view": view}


def _objects(rows: list[dict[str, Any]], geometry: Geometry) -> Objects:
    """The objects of an image, without masks; boxes in the network's input are computed from the boxes in the image."""
    boxes = torch.tensor([[row[side] for side in ("x1", "y1", "x2", "y2")] for row in rows]).reshape(-1, 4)

    def whole(*names: str) -> torch.Tensor:
        return torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.int64).reshape(-1, len(names))

    return Objects(
        boxes=boxes,
        scores=torch.tensor([row["score"] for row in rows]),
        class_ids=whole("class_id")[:, 0],
        labels=tuple(row["label"] for row in rows),
        index=whole("index")[:, 0],
        level=whole("level")[:, 0],
        cells=whole("cell_row", "cell_column"),
        network_boxes=geometry.to_network(boxes),
    )
