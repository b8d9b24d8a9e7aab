"""A comparison of many pictures on disk: its rows as JSON, and a page to look at."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detcam.analysis.comparison import MEASURES, Comparison, mean
from detcam.errors import OutputError
from detcam.explanation import Explanation
from detcam.report.pack import colour_tables, pack_map, span
from detcam.report.page import page

DOCUMENT, PAGE = "compare.json", "compare.html"
CELLS = 96  # the most rows or columns of a heatmap in the page
PIXELS = 720  # the longest side of a picture in the page
SHOWN = 200  # rows of each kind (in both, in one only) that the page holds: the first ones


def write_comparison(
    folder: str | os.PathLike[str],
    compared: Iterable[tuple[str | os.PathLike[str], Comparison]],
    names: tuple[str, str] = ("first", "second"),
) -> dict[str, Any]:
    """Write `compare.json` and `compare.html`.

    Args:
        folder: made if it does not exist.
        compared: each picture's path or name, and its comparison; taken one by one, so it may be a generator.
        names: what the two sides are called.

    Returns:
        What `compare.json` holds: "a" and "b" (name and settings of each side), "measures", "summary", "pictures" and
        "rows" (see `Comparison.rows`), objects that both have first, and those whose maps are least alike before all.

    Raises:
        OutputError: if the folder cannot be written.
    """
    folder = Path(folder)
    _make(folder)  # before the long work
    gathered = Gathered(names)
    for source, comparison in compared:
        gathered.add(str(source), comparison)
    document = gathered.document()
    _write(folder, {DOCUMENT: json.dumps(document, indent=2, ensure_ascii=False), PAGE: gathered.page(document)})
    return document


class Gathered:
    """The rows of all pictures, and of the pictures of the first rows all that a page shows."""

    def __init__(self, names: tuple[str, str]) -> None:
        self._names = names
        self._settings: list[dict[str, Any]] = [{}, {}]
        self._iou: float | None = None
        self._pictures: list[dict[str, Any]] = []
        self._rows: list[tuple[int, dict[str, Any]]] = []  # with the picture's place
        self._packed: dict[int, dict[str, Any]] = {}

    def add(self, source: str, comparison: Comparison) -> None:
        """Take in the comparison of one picture."""
        place = len(self._pictures)
        explanations = {"a": comparison.a, "b": comparison.b}
        self._settings, self._iou = [e.settings for e in explanations.values()], comparison.iou
        height, width = comparison.a.geometry.source
        found = {side: len(e) for side, e in explanations.items()}
        self._pictures.append({"picture": source, "width": width, "height": height, "objects": found})
        energies = {side: e.energy_in_box for side, e in explanations.items()}
        for row in comparison.rows():
            for side in explanations:
                if row[side]:
                    energy = energies[side][row[side]["object"]]
                    row[side]["energy_in_box"] = None if energy is None else round(energy, 6)
            self._rows.append((place, {"picture": source, **row}))
        if comparison.pairs:
            self._packed[place] = {
                "name": _base(source),
                "width": width,
                "height": height,
                "picture": _picture(comparison.a.image),
                "sides": [_side(e, energies[side]) for side, e in explanations.items()],
            }
        if len(self._packed) > 4 * SHOWN:  # now and then, so that memory does not grow with the number of pictures
            self._forget()

    def document(self) -> dict[str, Any]:
        """What `compare.json` holds."""
        self._forget()
        rows = [row for _, row in self._rows]
        both = [row for row in rows if row["found_by"] == "both"]
        summary = {
            "pictures": len(self._pictures),
            "both": len(both),
            "only_a": sum(row["found_by"] == "a" for row in rows),
            "only_b": sum(row["found_by"] == "b" for row in rows),
            "similarity": mean(row["similarity"] for row in both),
            "rank_correlation": mean(row["rank_correlation"] for row in both),
        }
        a, b = (
            {"name": name, "settings": settings} for name, settings in zip(self._names, self._settings, strict=True)
        )
        return {
            "a": a, "b": b, "iou": self._iou, "measures": MEASURES, "summary": summary, "pictures": self._pictures,
            "rows": rows,
        }  # fmt: skip

    def page(self, document: dict[str, Any]) -> str:
        """The page of a document."""
        shown = self._shown()
        order = {place: i for i, place in enumerate(sorted({place for place, _ in shown}))}
        data = {
            "names": self._names,
            "settings": self._settings,
            "summary": document["summary"],
            "iou": document["iou"],
            "left_out": len(self._rows) - len(shown),
            "colours": colour_tables(),
            "pictures": [self._packed[place] for place in order],
            "rows": [_row(order[place], row) for place, row in shown],
        }
        title, scripts = f"{' / '.join(self._names)} - detcam", ("stage.js", "keys.js", "compare.js")
        return page("compare", title, data, scripts, styles=("report.css",))

    def _shown(self) -> list[tuple[int, dict[str, Any]]]:
        """The first rows of each kind, in order."""
        kinds = [[entry for entry in self._rows if (entry[1]["found_by"] == "both") is both] for both in (True, False)]
        return [entry for kind in kinds for entry in kind[:SHOWN]]

    def _forget(self) -> None:
        """Put the rows in order, and drop the pictures that the page will not show."""
        self._rows.sort(key=lambda entry: _order(entry[1]))
        needed = {place for place, _ in self._shown()}
        self._packed = {place: packed for place, packed in self._packed.items() if place in needed}


def _order(row: dict[str, Any]) -> tuple[float, ...]:
    """Objects in both first, the least alike before all; then those in one only; the best scores first."""
    similarity = 2.0 if row["similarity"] is None else row["similarity"]
    score = max(row[side]["score"] for side in ("a", "b") if row[side])
    return (row["found_by"] != "both", similarity, -score)


def _row(picture: int, row: dict[str, Any]) -> dict[str, Any]:
    """A row as the page has it: objects as their places in their picture."""
    places = {side: row[side] and row[side]["object"] for side in ("a", "b", "instead")}
    return {"picture": picture, **places, **{name: row[name] for name in ("iou", "similarity", "rank_correlation")}}


def _side(explanation: Explanation, energies: list[float | None]) -> dict[str, Any]:
    objects = [
        {
            "label": explanation.labels[i],
            "score": round(float(explanation.scores[i]), 4),
            "box": [round(side, 2) for side in explanation.boxes[i].tolist()],
            "note": explanation.notes[i],
            "energy": energy and round(energy, 4),
            "map": pack_map(explanation.maps[i].float().cpu().numpy(), CELLS),
        }
        for i, energy in enumerate(energies)
    ]
    return {"span": span(explanation.geometry), "objects": objects}


def _picture(image: np.ndarray) -> str:
    """[H, W, 3] uint8 RGB as a WebP that a page can show."""
    shrink = min(PIXELS / max(image.shape[:2]), 1)
    size = max(round(image.shape[1] * shrink), 1), max(round(image.shape[0] * shrink), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".webp", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 78])
    if not done:
        raise OutputError(f"{PAGE} cannot be written (a picture of {size} pixels could not be encoded)")
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode()}"


def _base(source: str) -> str:
    return source.replace("\\", "/").rstrip("/").rpartition("/")[2] or source


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror or error}): choose another --out") from None


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Write the files beside their places and move them there at the end, so that an error leaves no half of them."""
    works = {name: folder / f".detcam-{name}" for name in texts}
    try:
        for name, work in works.items():  # a file's name may be no Unicode
            work.write_text(texts[name] + "\n", encoding="utf-8", errors="replace", newline="\n")
        for name, work in works.items():
            work.replace(folder / name)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror or error}): free some space") from None
    finally:
        for work in works.values():
            work.unlink(missing_ok=True)
