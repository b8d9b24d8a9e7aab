"""The pages of a folder of explanations: one for each picture, and for several an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from detcam.analysis.heat_summary import Looks, looks_of
from detcam.analysis.truth import Truth
from detcam.errors import OutputError
from detcam.report.pack import THUMBNAIL_CELLS, colour_tables, jpeg, pack_map, span, thumbnail
from detcam.report.page import page
from detcam.report.summary_page import looks_json, looks_page
from detcam.saved import Saved, find, pictures

REPORT, INDEX = "report.html", "index.html"
LOOKS, FIGURES = "looks.html", "looks.json"
CELLS = 256  # the most rows or columns of a heatmap in a page
FACETS = ("model", "method", "layers", "target", "run")


def write_report(
    root: str | os.PathLike[str],
    folders: Sequence[Path] | None = None,
    progress: Callable[[int, int], None] | None = None,
    labels: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a page for each picture that was explained into `root`, and an index page if there are several.

    A picture's page, `report.html`, lies in the folder of its first explanation, or in `root` if it is the only
    picture; explanations of the same picture by other methods, layers, targets or models share it. Every page is one
    file that needs no other.

    Beside the index, and wherever there are labels, `looks.html` and `looks.json` say what the model looks at over all
    pictures: see `looks_at`.

    Args:
        root: a folder that `Explanation.save` or `detcam explain` wrote, or one of such folders.
        folders: the folders of the explanations to show, `root` or below it. None: all that are there.
        progress: called after each picture's page with (pages written, pages in all).
        labels: ground truth, see `detcam.evaluate.labels.read.read_labels`.

    Returns:
        The page to open first.

    Raises:
        InputError: if there is no explanation, one is damaged, or the labels cannot be used.
        OutputError: if a page cannot be written.
    """
    root = Path(root)
    groups = pictures(find(root) if folders is None else folders)
    several, looks = len(groups) > 1, False
    if several or labels is not None:
        truth = None if labels is None else Truth.read(Path(labels), groups)
        looks = _write_looks(looks_of(groups, truth), groups, root)
    if not several:
        return _write(root / REPORT, _report(groups[0], root, None))
    for done, group in enumerate(groups, 1):
        folder = group[0].folder
        _write(folder / REPORT, _report(group, root, _link(folder, root / INDEX)))
        if progress is not None:
            progress(done, len(groups))
    return _write(root / INDEX, _index(groups, root, looks))


def _write_looks(ways: list[Looks], groups: list[list[Saved]], root: Path) -> bool:
    """Whether there was anything to write about: answers to questions alone are not."""
    several = len(groups) > 1
    pages = {
        saved.folder: (group[0].folder / REPORT if several else root / REPORT, saved is group[0])
        for group in groups
        for saved in group
    }

    def address(saved: Saved, number: int | None) -> str:
        page, opened = pages[saved.folder]  # a page opens with its first explanation
        return _link(root, page) + (f"#{number + 1}" if opened and number is not None else "")

    if ways:
        back = (INDEX, "All pictures") if several else (REPORT, "The picture")
        _write(root / LOOKS, looks_page(ways, root, address, back))
        _write(root / FIGURES, looks_json(ways, root))
    return bool(ways)


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
    return page("report", f"{first.name} - detcam", data, ("stage.js", "list.js", "keys.js", "report.js"))


def _facets(group: list[Saved], root: Path) -> list[str]:
    """What tells the explanations of a picture apart, and so can be chosen."""
    rows = [_choices(saved, root) for saved in group]
    telling = [name for name in FACETS[:-1] if len({row[name] for row in rows}) > 1]
    alike = len({tuple(row[name] for name in telling) for row in rows}) < len(rows)
    return [*telling, "run"] if alike else telling


def _choices(saved: Saved, root: Path) -> dict[str, str]:
    return {**saved.facets, "run": os.path.relpath(saved.folder, root)}


def _variant(saved: Saved, root: Path) -> dict[str, Any]:
    objects = [{**_facts(found), "map": pack_map(raw, CELLS)} for found, raw in _objects(saved)]
    return {"choices": _choices(saved, root), "span": span(saved.geometry), "objects": objects}


def _objects(saved: Saved) -> list[tuple[dict[str, Any], Any]]:
    return list(zip(saved.objects, saved.maps(), strict=True))


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("label", "score", "box", "note")} | {"energy": found["energy_in_box"]}


def _index(groups: list[list[Saved]], root: Path, looks: bool) -> str:
    """The index shows the first explanation of each picture."""
    shown = [group[0] for group in groups]
    data = {
        "name": root.resolve().name,
        "colours": colour_tables(),
        "looks": LOOKS if looks else None,
        "pictures": [
            {
                "name": saved.name,
                "page": _link(root, saved.folder / REPORT),
                "width": saved.document["image"]["width"],
                "height": saved.document["image"]["height"],
                "thumbnail": thumbnail(saved),
                "span": span(saved.geometry),
                "objects": [{**_facts(found), "map": pack_map(raw, THUMBNAIL_CELLS)} for found, raw in _objects(saved)],
            }
            for saved in shown
        ],
    }
    return page("index", f"{data['name']} - detcam", data, ("cards.js", "index.js"), ("cards.css",))


def _link(folder: Path, page: Path) -> str:
    """The address of a page as seen from `folder`, safe for any name."""
    return quote(os.fsencode(Path(os.path.relpath(page, folder)).as_posix()))


def _write(path: Path, text: str) -> Path:
    """Write the page beside its place and move it there, so that an error leaves no half of it."""
    work = path.with_name(f".detcam-{path.name}")
    try:
        work.write_text(text, encoding="utf-8", newline="\n")
        work.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}): check the folder") from None
    finally:
        work.unlink(missing_ok=True)
    return path
