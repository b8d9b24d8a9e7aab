"""Comparison page: the comparisons of many images as `compare.json` and `compare.html`."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detcam.analysis.comparison import MEASURES, Comparison, mean
from detcam.errors import writing
from detcam.explanation import Explanation
from detcam.files import whole_folder
from detcam.report.page import colour_tables, pack_map, page, webp

DOCUMENT, PAGE = "compare.json", "compare.html"
CELLS = 96  # rows or columns of a heatmap in the page, at most
PIXELS = 720  # longest side of an image in the page
SHOWN = 200  # rows of each kind (in both, in one side only) in the page: the first ones


def write_comparison(
    folder: str | os.PathLike[str],
    compared: Iterable[tuple[str | os.PathLike[str], Comparison]],
    names: tuple[str, str] = ("first", "second"),
) -> dict[str, Any]:
    """Write `compare.json` and `compare.html` from the path or name of each image and its comparison.

    Returns the contents of `compare.json`: "a" and "b" (name and settings of each side), "measures", "summary",
    "pictures" and "rows" (see `Comparison.rows`): objects in both sides first, in order of increasing similarity.
    Raises an OutputError if the folder cannot be made or written.
    """
    folder = Path(folder)
    with writing(folder, "choose another --out"):  # fail before the long work
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    gathered = Gathered(names)
    for source, comparison in compared:
        gathered.add(str(source), comparison)
    document = gathered.document()
    texts = {DOCUMENT: json.dumps(document, indent=2, ensure_ascii=False), PAGE: gathered.page(document)}
    with writing(folder, "free some space"), whole_folder(folder) as work:
        for name, text in texts.items():  # the name of a file may not be valid Unicode
            (work / name).write_bytes(f"{text}\n".encode(errors="replace"))
    return document


class Gathered:
    """The rows of all images, and everything that the page shows of the images of the first rows."""

    def __init__(self, names: tuple[str, str]) -> None:
        self._names = names
        self._settings: list[dict[str, Any]] = [{}, {}]
        self._iou: float | None = None
        self._pictures: list[dict[str, Any]] = []
        self._rows: list[tuple[int, dict[str, Any]]] = []  # with the position of the image
        self.packed: dict[int, dict[str, Any]] = {}  # position of an image -> its data for the page

    def add(self, source: str, comparison: Comparison) -> None:
        """Add the comparison of one image."""
        place = len(self._pictures)
        explanations = {"a": comparison.a, "b": comparison.b}
        self._settings, self._iou = [e.settings for e in explanations.values()], comparison.iou
        height, width = comparison.a.geometry.source
        counts = {side: len(e) for side, e in explanations.items()}
        self._pictures.append({"picture": source, "width": width, "height": height, "objects": counts})
        energies = {side: e.energy_in_box for side, e in explanations.items()}
        for row in comparison.rows():
            for side in explanations:
                if row[side]:
                    energy = energies[side][row[side]["object"]]
                    row[side]["energy_in_box"] = None if energy is None else round(energy, 6)
            self._rows.append((place, {"picture": source, **row}))
        if comparison.pairs:
            self.packed[place] = {
                "name": source.replace("\\", "/").rstrip("/").rpartition("/")[2] or source,
                "width": width,
                "height": height,
                "picture": webp(comparison.a.image[:, :, ::-1], PIXELS, 78),
                "sides": [_side(e, energies[side]) for side, e in explanations.items()],
            }
        if len(self.packed) > 4 * SHOWN:  # keeps memory from growing with the number of images
            self._forget()

    def document(self) -> dict[str, Any]:
        """The contents of `compare.json`."""
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
        a, b = ({"name": name, "settings": s} for name, s in zip(self._names, self._settings, strict=True))
        return {
            "a": a, "b": b, "iou": self._iou, "measures": MEASURES, "summary": summary, "pictures": self._pictures,
            "rows": rows,
        }  # fmt: skip

    def page(self, document: dict[str, Any]) -> str:
        """`compare.html` as text, for a document from `document()`."""
        shown = self._shown()
        order = {place: i for i, place in enumerate(sorted({place for place, _ in shown}))}
        data = {
            "names": self._names,
            "settings": self._settings,
            "summary": document["summary"],
            "left_out": len(self._rows) - len(shown),
            "colours": colour_tables(),
            "pictures": [self.packed[place] for place in order],
            "rows": [_row(order[place], row) for place, row in shown],
        }
        title, scripts = f"{' / '.join(self._names)} - detcam", ("stage.js", "viewer.js", "compare.js")
        return page("compare", title, data, scripts, styles=("report.css",))

    def _shown(self) -> list[tuple[int, dict[str, Any]]]:
        """The first rows of each kind, in order: those that the page shows."""
        kinds = [[entry for entry in self._rows if (entry[1]["found_by"] == "both") is both] for both in (True, False)]
        return [entry for kind in kinds for entry in kind[:SHOWN]]

    def _forget(self) -> None:
        """Sort the rows, and drop the images that the page will not show."""
        self._rows.sort(key=lambda entry: _order(entry[1]))
        needed = {place for place, _ in self._shown()}
        self.packed = {place: packed for place, packed in self.packed.items() if place in needed}


def _order(row: dict[str, Any]) -> tuple[float, ...]:
    """Sort key: objects in both sides by increasing similarity, then objects in one side by decreasing score."""
    similarity = 2.0 if row["similarity"] is None else row["similarity"]
    score = max(row[side]["score"] for side in ("a", "b") if row[side])
    return (row["found_by"] != "both", similarity, -score)


def _row(picture: int, row: dict[str, Any]) -> dict[str, Any]:
    """A row in the form that `compare.js` takes: objects by their position in the image."""
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
            "map": pack_map(explanation.maps[i].float().cpu().numpy(), CELLS, explanation.placement(i)),
        }
        for i, energy in enumerate(energies)
    ]
    return {"objects": objects}
