"""An explanation's folder: written whole or not at all, and read back."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detcam.errors import InputError, OutputError
from detcam.files import whole_folder
from detcam.geometry import Geometry
from detcam.render.overlay import contact_sheet

CONTACT_LIMIT = 24  # tiles on a contact sheet; the strongest objects come first
PREVIEW = 1600  # pixels


def save(
    folder: Path,
    document: dict[str, Any],
    arrays: dict[str, np.ndarray],
    picture: np.ndarray,
    overview: np.ndarray,
    overlays: list[np.ndarray],
) -> Path:
    """Write an explanation into `folder`; see `Explanation.save`.

    Args:
        folder: made if it does not exist.
        document: what `explanation.json` holds; the names of the overlays are added to its objects.
        arrays: what `heatmaps.npz` holds.
        picture: [H, W, 3] uint8 RGB.
        overview: [H, W, 3] uint8 RGB, the picture with every box.
        overlays: N pictures [H, W, 3] uint8 RGB.

    Raises:
        OutputError: if the folder cannot be written.
    """
    try:
        with whole_folder(folder) as work:
            _write_all(work, document, arrays, picture, overview, overlays)
            for stale in _earlier_overlays(folder):
                stale.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{folder} cannot be written ({reason}): choose another --out, or free some space") from None
    return folder


def _earlier_overlays(folder: Path) -> list[Path]:
    """The overlays that an earlier run lists in its explanation.json: it may have had more objects."""
    try:
        document = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
        names = [found["overlay"] for found in document["objects"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [
        folder / name for name in names if isinstance(name, str) and re.fullmatch(r"overlay_\d+_[a-z0-9-]+\.png", name)
    ]


def _write_all(
    folder: Path,
    document: dict[str, Any],
    arrays: dict[str, np.ndarray],
    picture: np.ndarray,
    overview: np.ndarray,
    overlays: list[np.ndarray],
) -> None:
    for i, (overlay, found) in enumerate(zip(overlays, document["objects"], strict=True)):
        found["overlay"] = f"overlay_{i:03d}_{_slug(found['label'])}.png"
        _write_png(folder / found["overlay"], overlay)
    _write_png(folder / "contact.png", contact_sheet([overview, *overlays[:CONTACT_LIMIT]]))
    (folder / "picture.jpg").write_bytes(_preview(picture))
    np.savez_compressed(folder / "heatmaps.npz", **arrays)  # type: ignore[arg-type]  # its stub takes them for flags
    _write_json(folder / "explanation.json", document)


def _slug(label: str) -> str:
    """A label as part of a file name: letters, digits, dash."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:60] or "object"


def _write_png(path: Path, picture: np.ndarray) -> None:
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{path.name} could not be encoded")
    path.write_bytes(data.tobytes())


def _preview(picture: np.ndarray) -> bytes:
    """The picture as JPEG, no side longer than PREVIEW pixels: what a report page shows."""
    height, width = picture.shape[:2]
    shrink = PREVIEW / max(height, width)
    if shrink < 1:
        size = max(round(width * shrink), 1), max(round(height * shrink), 1)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not done:
        raise OSError("picture.jpg could not be encoded")
    return data.tobytes()


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="replace")  # a file's name may be no Unicode


NAME, PICTURE = "explanation.json", "picture.jpg"


@dataclass(frozen=True)
class Saved:
    """One saved explanation.

    Attributes:
        folder: where it lies.
        document: its `explanation.json`.
        digest: of its `picture.jpg`.
    """

    folder: Path
    document: dict[str, Any]
    digest: str

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """The explanation in `folder`.

        Raises:
            InputError: if there is none, or it is not whole.
        """
        try:
            document = json.loads((folder / NAME).read_text(encoding="utf-8"))
            saved = cls(folder, document, hashlib.sha256((folder / PICTURE).read_bytes()).hexdigest())
            _ = saved.geometry, document["settings"]["method"], [found["energy_in_box"] for found in saved.objects]
        except OSError as error:
            raise broken(folder, f"{Path(error.filename).name}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise broken(folder, f"{NAME}: {type(error).__name__} {error}") from None
        return saved

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The objects as `explanation.json` lists them."""
        objects: list[dict[str, Any]] = self.document["objects"]
        return objects

    @property
    def picture(self) -> bytes:
        """The picture as JPEG, as large as a page shows it; read anew, because many do not fit into memory."""
        return (self.folder / PICTURE).read_bytes()

    @property
    def geometry(self) -> Geometry:
        """How the picture lay in the network's input."""
        facts, size = self.document["geometry"], self.document["image"]
        (rows, columns), (top, left), (height, width) = facts["resized"], facts["pad"], facts["network"]
        return Geometry((size["height"], size["width"]), (rows, columns), (top, left), (height, width))

    @property
    def name(self) -> str:
        """The picture's file name; that of the folder if the picture came from no file."""
        source = str(self.document.get("source") or "")
        return source.replace("\\", "/").rstrip("/").rpartition("/")[2] or self.folder.resolve().name

    @property
    def facets(self) -> dict[str, str]:
        """What the maps were made with, for people to choose by."""
        settings = self.document["settings"]
        facets = {name: settings.get(name, "") for name in ("model", "method", "layers", "target")}
        return {name: ", ".join(value) if isinstance(value, list) else str(value) for name, value in facets.items()}

    def maps(self) -> list[np.ndarray]:
        """N raw coarse maps [h, w] float32.

        Raises:
            InputError: if `heatmaps.npz` is missing or damaged.
        """
        try:
            with np.load(self.folder / "heatmaps.npz") as archive:
                return [archive[f"map_{i:03d}"] for i in range(len(self.objects))]
        except Exception as error:  # a damaged archive raises whatever its decoder met
            raise broken(self.folder, f"heatmaps.npz: {' '.join(str(error).split())}") from None


def broken(folder: Path, reason: str) -> InputError:
    """The error for a folder whose explanation is not whole."""
    return InputError(f"{folder} holds no whole explanation ({reason}): run detcam explain into it again, or remove it")


def find(root: Path) -> list[Path]:
    """The folders of all explanations in `root` and below it.

    Raises:
        InputError: if there is none.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder: give the --out of detcam explain")
    folders = sorted(path.parent for path in root.rglob(NAME))
    if not folders:
        raise InputError(f"{root} holds no {NAME}: give the --out of detcam explain")
    return folders


def pictures(folders: Iterable[Path]) -> list[list[Saved]]:
    """The explanations in `folders`, those of one picture together, in the order in which pictures first come.

    Explanations belong together if they have the same source and pixels and were not made the same way.
    """
    groups: dict[tuple[Any, ...], list[Saved]] = {}
    seen: Counter[tuple[Any, ...]] = Counter()
    for folder in folders:
        saved = Saved.read(folder)
        picture = (saved.document.get("source"), saved.digest)
        way = (*picture, json.dumps(saved.document["settings"], sort_keys=True))
        groups.setdefault((*picture, seen[way]), []).append(saved)
        seen[way] += 1
    return list(groups.values())
