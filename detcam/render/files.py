"""An explanation on disk: all of it, or none of it."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from detcam.errors import OutputError
from detcam.render.overlay import contact_sheet, draw_box

if TYPE_CHECKING:
    from detcam.explanation import Explanation

CONTACT_LIMIT = 24  # tiles on a contact sheet; the strongest objects come first


def save(explanation: Explanation, folder: Path) -> Path:
    """Write an explanation into `folder`; see `Explanation.save`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".detcam-", dir=folder))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror or error}): choose another --out") from None
    try:
        _write_all(explanation, work)
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


def _write_all(explanation: Explanation, folder: Path) -> None:
    document = explanation.to_dict()
    titles = explanation.labels
    overlays = [explanation.overlay(i) for i in range(len(explanation))]
    for i, overlay in enumerate(overlays):
        name = f"overlay_{i:03d}_{_slug(titles[i])}.png"
        _write_png(folder / name, overlay)
        document["objects"][i]["overlay"] = name
    _write_png(folder / "contact.png", contact_sheet([_overview(explanation), *overlays[:CONTACT_LIMIT]]))
    np.savez_compressed(folder / "heatmaps.npz", heatmaps=explanation.heatmaps.cpu().numpy())
    _write_json(folder / "explanation.json", document)


def _overview(explanation: Explanation) -> np.ndarray:
    """The picture with every box."""
    picture = explanation.image
    for i in range(len(explanation)):
        title = f"{explanation.labels[i]} {float(explanation.scores[i]):.2f}"
        picture = draw_box(picture, explanation.boxes[i].tolist(), title)
    return picture


def _slug(label: str) -> str:
    """A label as part of a file name: letters, digits, dash."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:60] or "object"


def _write_png(path: Path, picture: np.ndarray) -> None:
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{path.name} could not be encoded")
    path.write_bytes(data.tobytes())


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
