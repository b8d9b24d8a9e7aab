"""Report writer: a page for each explained image, an index for several, and the heat summary."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from detcam.analysis.heat_summary import HeatSummary, summarise_groups
from detcam.analysis.truth import Truth
from detcam.errors import writing
from detcam.files import write_whole
from detcam.report.page import THUMBNAIL_CELLS, colour_tables, jpeg, pack_map, page, thumbnail
from detcam.report.summary_page import summary_json, summary_page
from detcam.saved import Saved, find, pictures

REPORT, INDEX = "report.html", "index.html"
SUMMARY, FIGURES = "looks.html", "looks.json"
CELLS = 256  # rows or columns of a heatmap in a page, at most
FACETS = ("model", "view", "method", "layers", "target", "run")
READING = {  # what a view can and cannot show
    "why": "Why: the evidence for the model's answer, wherever in the image it lies. It need not cover the object.",
    "where": "Where: the place that the object was read from. It lies in the box whatever the model looks at, so it "
    "cannot show what the answer rests on.",
}


def write_report(
    root: str | os.PathLike[str],
    folders: Sequence[Path] | None = None,
    progress: Callable[[int, int], None] | None = None,
    labels: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a page for each explained image below `root`, and an index page if there are several images.

    The page of an image, `report.html`, lies in the folder of its first explanation, or in `root` if it is the only
    image. Explanations of the same image by other methods, layers, targets or models share a page. Every page is one
    self-contained file.

    With several images or with labels, `looks.html` and `looks.json` hold the heat summary over all images: see
    `detcam.analysis.heat_summary.summarise`.

    Args:
        root: a folder written by `Explanation.save` or `detcam explain`, or a folder of such folders.
        folders: folders of the explanations to show, `root` or below it. None: all that are there.
        progress: called after each image's page with (pages written, pages in total).
        labels: ground truth, see `detcam.evaluate.labels.read.read_labels`.

    Returns:
        The page to open first.

    Raises:
        InputError: if there is no explanation, one is damaged, or the labels cannot be used.
        OutputError: if a page cannot be written.
    """
    root = Path(root)
    groups = pictures(find(root) if folders is None else folders)
    several, summarised = len(groups) > 1, False
    if several or labels is not None:
        truth = None if labels is None else Truth.read(Path(labels), groups)
        summarised = _write_summary(summarise_groups(groups, truth), groups, root)
    if not several:
        return _write(root / REPORT, _report(groups[0], root, None))
    for done, group in enumerate(groups, 1):
        folder = group[0].folder
        _write(folder / REPORT, _report(group, root, _link(folder, root / INDEX)))
        if progress is not None:
            progress(done, len(groups))
    return _write(root / INDEX, _index(groups, root, summarised))


def _write_summary(summaries: list[HeatSummary], groups: list[list[Saved]], root: Path) -> bool:
    """Write the heat summary; False if there is none, because all explanations answer questions."""
    several = len(groups) > 1
    pages = {
        saved.folder: (group[0].folder / REPORT if several else root / REPORT, saved is group[0])
        for group in groups
        for saved in group
    }

    def address(saved: Saved, number: int | None) -> str:
        page, opened = pages[saved.folder]  # a page opens with its first explanation
        return _link(root, page) + (f"#{number + 1}" if opened and number is not None else "")

    if summaries:
        back = (INDEX, "All images") if several else (REPORT, "The image")
        _write(root / SUMMARY, summary_page(summaries, root, address, back))
        _write(root / FIGURES, summary_json(summaries, root))
    return bool(summaries)


def _report(group: list[Saved], root: Path, index: str | None) -> str:
    first = group[0]
    data = {
        "name": first.name,
        "width": first.document["image"]["width"],
        "height": first.document["image"]["height"],
        "picture": jpeg(first.picture),
        "colours": colour_tables(),
        "index": index,
        "facets": _facets(group, root),
        "variants": [_variant(saved, root) for saved in group],
    }
    return page("report", f"{first.name} - detcam", data, ("stage.js", "viewer.js", "list.js", "report.js"))


def _facets(group: list[Saved], root: Path) -> list[str]:
    """The settings in which the explanations of an image differ: the page has a menu for each."""
    rows = [_choices(saved, root) for saved in group]
    views = {row["view"] for row in rows}
    implied = ["view"]  # by the others
    if "" not in views:
        told = ("method", "layers", "target")
        implied = [name for name in told if len({(row["view"], row[name]) for row in rows}) == len(views)]
    differing = [name for name in FACETS[:-1] if name not in implied and len({row[name] for row in rows}) > 1]
    ambiguous = len({tuple(row[name] for name in differing) for row in rows}) < len(rows)
    return [*differing, "run"] if ambiguous else differing


def _choices(saved: Saved, root: Path) -> dict[str, str]:
    return {**saved.facets, "view": saved.view, "run": os.path.relpath(saved.folder, root)}


def _variant(saved: Saved, root: Path) -> dict[str, Any]:
    facts = {"choices": _choices(saved, root), "reading": READING.get(saved.view, "")}
    return {**facts, "objects": _objects(saved, CELLS)}


def _objects(saved: Saved, cells: int) -> list[dict[str, Any]]:
    """The objects as the pages take them, with at most `cells` rows or columns of their maps."""
    return [
        {name: item[name] for name in ("label", "score", "box", "note")}
        | {"energy": item["energy_in_box"], "check": item.get("check"), "map": pack_map(raw, cells, saved.placement(i))}
        for i, (item, raw) in enumerate(zip(saved.objects, saved.maps(), strict=True))
    ]


def _index(groups: list[list[Saved]], root: Path, summarised: bool) -> str:
    """The index page; it shows the first explanation of each image."""
    shown = [group[0] for group in groups]
    data = {
        "name": root.resolve().name,
        "colours": colour_tables(),
        "summary": SUMMARY if summarised else None,
        "pictures": [
            {
                "name": saved.name,
                "page": _link(root, saved.folder / REPORT),
                "width": saved.document["image"]["width"],
                "height": saved.document["image"]["height"],
                "thumbnail": thumbnail(saved),
                "objects": _objects(saved, THUMBNAIL_CELLS),
            }
            for saved in shown
        ],
    }
    return page("index", f"{data['name']} - detcam", data, ("cards.js", "index.js"), ("cards.css",))


def _link(folder: Path, page: Path) -> str:
    """The URL of a page relative to `folder`, safe for any file name."""
    return quote(os.fsencode(Path(os.path.relpath(page, folder)).as_posix()))


def _write(path: Path, text: str) -> Path:
    with writing(path, "check the folder"):
        write_whole(path, text.encode())
    return path
