"""An explanation on disk: all of it, or none of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np

from detcam.errors import OutputError
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
        fresh = not folder.exists()
        place = folder.parent if fresh else folder
        place.mkdir(parents=True, exist_ok=True)
        work = place / f".detcam-{uuid4().hex}"
        work.mkdir()
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror or error}): choose another --out") from None
    try:
        _write_all(work, document, arrays, picture, overview, overlays)
        if fresh:
            work.rename(folder)  # whole or not at all, whenever Ctrl-C comes
            return folder
        for stale in _earlier_overlays(folder):
            stale.unlink(missing_ok=True)
        for path in sorted(work.iterdir()):
            path.replace(folder / path.name)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror or error}): free some space") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
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
