"""What `Explanation.save` left on disk, found again and put in order."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detcam.errors import InputError
from detcam.geometry import Geometry
from detcam.report.pack import thumbnail

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
            raise _broken(folder, f"{Path(error.filename).name}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise _broken(folder, f"{NAME}: {type(error).__name__} {error}") from None
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

    def thumbnail(self, view: Sequence[float] = (0, 0, 1, 1)) -> str:
        """The picture, small, as an address that a page can show.

        Args:
            view: left, top, right, bottom of what to show, as shares of the picture.

        Raises:
            InputError: if `picture.jpg` is damaged.
        """
        try:
            return thumbnail(self.picture, view)
        except ValueError as error:
            raise _broken(self.folder, f"{PICTURE}: {error}") from None

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
            raise _broken(self.folder, f"heatmaps.npz: {' '.join(str(error).split())}") from None


def _broken(folder: Path, reason: str) -> InputError:
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
