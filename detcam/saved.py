"""Saved explanations: the writer and the reader of an explanation's folder."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detcam.errors import InputError, writing
from detcam.files import whole_folder
from detcam.geometry import Geometry
from detcam.render.overlay import shrunk

NAME, PICTURE, MAPS = "explanation.json", "picture.jpg", "heatmaps.npz"
PREVIEW = 1600  # longest side of picture.jpg in pixels


def save(
    folder: Path,
    document: dict[str, Any],
    heatmaps: Iterable[np.ndarray],
    maps: list[np.ndarray],
    picture: np.ndarray,
    contact: np.ndarray,
    overlays: Iterable[np.ndarray],
) -> Path:
    """Write an explanation into `folder`, completely or not at all; see `Explanation.save`.

    Args:
        folder: made if it does not exist.
        document: contents of `explanation.json`; the file names of the overlays are added to its objects.
        heatmaps: N arrays [H, W] float32, of which one at a time is in memory.
        maps: N raw coarse maps [h, w] float32.
        picture: [H, W, 3] uint8 RGB, the source image.
        contact: [h, w, 3] uint8 RGB, the contact sheet.
        overlays: N images [H, W, 3] uint8 RGB, of which one at a time is in memory.

    Raises:
        OutputError: if the folder cannot be written.
    """
    with writing(folder, "choose another --out, or free some space"), whole_folder(folder) as work:
        for i, (overlay, item) in enumerate(zip(overlays, document["objects"], strict=True)):
            item["overlay"] = f"overlay_{i:03d}_{_slug(item['label'])}.png"
            _write_png(work / item["overlay"], overlay)
        _write_png(work / "contact.png", contact)
        (work / PICTURE).write_bytes(preview(picture))
        _write_arrays(work / MAPS, (len(maps), *picture.shape[:2]), heatmaps, maps)
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (work / NAME).write_text(text, encoding="utf-8", errors="replace")  # a file name may not be valid Unicode
        for stale in _earlier_overlays(folder):
            stale.unlink(missing_ok=True)
    return folder


def _write_arrays(path: Path, shape: tuple[int, ...], heatmaps: Iterable[np.ndarray], maps: list[np.ndarray]) -> None:
    """`np.savez_compressed` of "heatmaps" [N, H, W] and "map_000", ..., without the N heatmaps in memory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:  # as small, and faster
        with archive.open("heatmaps.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for heat in heatmaps:
                file.write(np.ascontiguousarray(heat, "<f4").data)
        for i, raw in enumerate(maps):
            with archive.open(f"map_{i:03d}.npy", "w") as file:
                np.lib.format.write_array(file, raw)


def _earlier_overlays(folder: Path) -> list[Path]:
    """The overlays of an earlier run, which may have had more objects, as listed in its explanation.json."""
    try:
        document = json.loads((folder / NAME).read_text(encoding="utf-8"))
        names = [item["overlay"] for item in document["objects"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    ours = re.compile(r"overlay_\d+_[a-z0-9-]+\.png")
    return [folder / name for name in names if isinstance(name, str) and ours.fullmatch(name)]


def _slug(label: str) -> str:
    """A label as part of a file name: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:60] or "object"


def _write_png(path: Path, picture: np.ndarray) -> None:
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{path.name} could not be encoded")
    path.write_bytes(data.tobytes())


def preview(picture: np.ndarray) -> bytes:
    """The image as JPEG for report pages, no side longer than PREVIEW pixels."""
    small = cv2.cvtColor(shrunk(picture, PREVIEW), cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not done:
        raise OSError(f"{PICTURE} could not be encoded")
    return data.tobytes()


@dataclass(frozen=True)
class Saved:
    """A saved explanation."""

    folder: Path  # the folder of the explanation
    document: dict[str, Any]  # contents of `explanation.json`
    digest: str  # SHA-256 of `picture.jpg`

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """Read the explanation in `folder`, without its maps; an InputError if there is none, or it is incomplete."""
        try:
            document = json.loads((folder / NAME).read_text(encoding="utf-8"))
            saved = cls(folder, document, hashlib.sha256((folder / PICTURE).read_bytes()).hexdigest())
            _ = saved.geometry, document["settings"]["method"], [item["energy_in_box"] for item in saved.objects]
        except OSError as error:
            raise broken(folder, f"{Path(error.filename).name}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise broken(folder, f"{NAME}: {type(error).__name__} {error}") from None
        return saved

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The objects as listed in `explanation.json`."""
        objects: list[dict[str, Any]] = self.document["objects"]
        return objects

    @property
    def picture(self) -> bytes:
        """The bytes of `picture.jpg`; read on each access, because the images of a set do not fit into memory."""
        return (self.folder / PICTURE).read_bytes()

    @property
    def geometry(self) -> Geometry:
        """The placement of the image in the network's input."""
        facts, size = self.document["geometry"], self.document["image"]
        (rows, columns), (top, left), (height, width) = facts["resized"], facts["pad"], facts["network"]
        return Geometry((size["height"], size["width"]), (rows, columns), (top, left), (height, width))

    @property
    def name(self) -> str:
        """The file name of the image; the name of the folder if the image did not come from a file."""
        source = str(self.document.get("source") or "")
        return source.replace("\\", "/").rstrip("/").rpartition("/")[2] or self.folder.resolve().name

    @property
    def facets(self) -> dict[str, str]:
        """The settings by which pages tell explanations apart: model, method, layers, target."""
        settings = self.document["settings"]
        facets = {name: settings.get(name, "") for name in ("model", "method", "layers", "target")}
        return {name: ", ".join(value) if isinstance(value, list) else str(value) for name, value in facets.items()}

    @property
    def view(self) -> str:
        """The question that the maps answer, "why" or "where"; "" for another method, or at other layers."""
        return str(self.document["settings"].get("view") or "")

    def placement(self, number: int) -> Geometry:
        """The placement of the image, or of the tile of an object, in the network's input."""
        tile = self.objects[number].get("tile")
        return self.geometry if tile is None else replace(self.geometry, crop=tuple(tile))

    def maps(self) -> list[np.ndarray]:
        """Read the N raw coarse maps [h, w] float32; an InputError if `heatmaps.npz` is missing or damaged."""
        try:
            with np.load(self.folder / MAPS) as archive:
                return [archive[f"map_{i:03d}"] for i in range(len(self.objects))]
        except Exception as error:  # a damaged archive raises the errors of several decoders
            raise broken(self.folder, f"{MAPS}: {' '.join(str(error).split())}") from None


def broken(folder: Path, reason: str) -> InputError:
    """The error for a folder with an incomplete explanation."""
    return InputError(
        f"{folder} holds no complete explanation ({reason}): run detcam explain into it again, or remove it"
    )


def find(root: Path) -> list[Path]:
    """The folders of all explanations in `root` and below it; an InputError if there is no explanation."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the --out of detcam explain")
    folders = sorted(path.parent for path in root.rglob(NAME))
    if not folders:
        raise InputError(f"{root} holds no {NAME}: give the --out of detcam explain")
    return folders


def pictures(folders: Iterable[Path]) -> list[list[Saved]]:
    """Group the explanations in `folders` by image, in the order in which the images first occur.

    Explanations belong to one image if their source and pixels are equal and their settings differ.
    """
    groups: dict[tuple[Any, ...], list[Saved]] = {}
    seen: Counter[tuple[Any, ...]] = Counter()
    for folder in folders:
        saved = Saved.read(folder)
        picture = (saved.document.get("source"), saved.digest)
        run = (*picture, json.dumps(saved.document["settings"], sort_keys=True))
        groups.setdefault((*picture, seen[run]), []).append(saved)
        seen[run] += 1
    return list(groups.values())
