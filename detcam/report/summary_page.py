"""Summary page: where a model's heat lies over a set of images, as HTML and as JSON."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detcam.analysis.box_frame import BOX, MARGIN
from detcam.analysis.heat_summary import FINE, MOSTLY, HeatSummary, ObjectHeat, Statistics, outside
from detcam.geometry import Geometry
from detcam.report.page import colour_tables, pack_map, page, thumbnail
from detcam.saved import Saved

CARDS = 36  # cards of a kind, at most
ALIKE = 6  # cards of one class among them, at most
CELLS = 96  # rows or columns of a heatmap, at most
ASPECT = 4 / 3  # width by height of the image on a card
LEAST = 64  # source pixels along each side of the image on a card, at least
UNIT = Geometry((1, 1), (1, 1), (0, 0), (1, 1))  # a map over the whole of what is shown

Address = Callable[[Saved, int | None], str]  # explanation, position of an object -> URL of the page that shows it


def summary_page(summaries: Sequence[HeatSummary], root: Path, address: Address, back: tuple[str, str]) -> str:
    """`looks.html` as text, for summaries of the explanations in the folder `root`.

    `address` gives the URL of the page that shows an object of an explanation; `back` are URL and title of the page to
    go back to.
    """
    name = root.resolve().name
    data = {
        "name": name,
        "back": {"page": back[0], "title": back[1]},
        "colours": colour_tables(),
        "margin": MARGIN,
        "mostly": MOSTLY,
        "fine": FINE,
        "ways": [
            {
                "choices": summary.choices,
                "pictures": summary.pictures,
                "groups": {kind: _group(summary, kind, address) for kind in summary.kinds},
            }
            for summary in summaries
        ],
    }
    title = f"What the model looks at - {name} - detcam"
    return page("summary", title, data, ("cards.js", "summary.js"), ("cards.css",))


def summary_json(summaries: Sequence[HeatSummary], root: Path) -> str:
    """`looks.json` as text: the statistics of each group, and a row for each object."""
    document = {
        "heat": "after ReLU, minimum subtracted, each object's heat divided by its sum over the image",
        "cells_along_the_box": BOX,
        "boxes_around": MARGIN,
        "ways": [summary.to_dict(root) for summary in summaries],
    }
    return json.dumps(document, allow_nan=False) + "\n"


def _group(summary: HeatSummary, kind: str, address: Address) -> dict[str, Any]:
    classes = [{"label": label, **_packed(summary.statistics(kind, label))} for label in summary.labels(kind)]
    cards = [_card(item, address) for item in _shown(summary, kind)]
    return {"all": _packed(summary.statistics(kind)), "classes": classes, "cards": cards}


def _packed(statistics: Statistics) -> dict[str, Any]:
    mean = None if statistics.mean is None else pack_map(statistics.mean, statistics.mean.shape[0], UNIT)
    return {**statistics.to_dict(), "mean": mean}


def _shown(summary: HeatSummary, kind: str) -> list[ObjectHeat]:
    """The objects that get a card, the largest share of heat outside the box first.

    Every class gets a card before any class gets its second. Mistakes are shown even if the share is small; misses
    without a map come last, the largest box first.
    """
    mistakes = kind in ("wrong", "missed")
    ranked = sorted(summary.of(kind), key=_rank, reverse=True) if mistakes else summary.by_surroundings(kind)
    seen: Counter[str] = Counter()
    turns = []
    for item in ranked:
        turns.append(seen[item.label])
        seen[item.label] += 1
    chosen = [place for place, turn in enumerate(turns) if turn < ALIKE]
    chosen.sort(key=lambda place: (turns[place] > 0, place))
    return [ranked[place] for place in sorted(chosen[:CARDS])]


def _rank(item: ObjectHeat) -> tuple[float, float]:
    x1, y1, x2, y2 = item.box
    return outside(item), (x2 - x1) * (y2 - y1)


def _card(item: ObjectHeat, address: Address) -> dict[str, Any]:
    """An object in a crop of its image, in the form that `cards.js` takes."""
    raw = None if item.number is None else item.saved.maps()[item.number]
    height, width = item.saved.geometry.source
    x1, y1, x2, y2 = _view(item, raw)
    whole = np.array([width, height] * 2)
    corner, size = np.array([x1, y1] * 2), np.array([x2 - x1, y2 - y1] * 2)
    picture = {
        "name": item.saved.name,
        "page": address(item.saved, item.number),
        "width": x2 - x1,
        "height": y2 - y1,
        "thumbnail": thumbnail(item.saved, (np.array([x1, y1, x2, y2]) / whole).tolist()),
    }
    packed = None
    if raw is not None and item.number is not None:
        packed = pack_map(raw, CELLS, item.saved.placement(item.number))
        packed |= {name: ((np.array(packed[name]) * whole - corner) / size).tolist() for name in ("span", "crop")}
    shown = ("label", "score", "note", "spread")
    facts = {name: value for name, value in item.to_dict(Path()).items() if name in shown}
    return {
        "picture": picture,
        "object": {
            **facts,
            "box": (np.array(item.box) - corner).tolist(),
            "map": packed,
        },
    }


def _view(item: ObjectHeat, raw: np.ndarray | None) -> tuple[int, int, int, int]:
    """The crop for a card: x1, y1, x2, y2 in source pixels.

    It holds the box, a margin as large as the box on every side, and the hottest cell.
    """
    height, width = item.saved.geometry.source
    x1, y1, x2, y2 = item.box
    across, down = [2 * x1 - x2, 2 * x2 - x1], [2 * y1 - y2, 2 * y2 - y1]
    if raw is not None and item.number is not None and item.spread is not None:
        x, y = _hottest(raw, item.saved.placement(item.number))
        across.append(x)
        down.append(y)
    wide, high = (max(max(places) - min(places), LEAST) for places in (across, down))
    (left, right), (top, bottom) = (
        _window(places, length, limit)
        for places, length, limit in (
            (across, max(wide, high * ASPECT), width),
            (down, max(high, wide / ASPECT), height),
        )
    )
    return left, top, right, bottom


def _window(places: list[float], length: float, limit: int) -> tuple[int, int]:
    """An interval of a length around the middle of all places, moved and cut to lie in [0, limit]."""
    length = min(length, limit)
    start = min(max((min(places) + max(places) - length) / 2, 0), limit - length)
    return math.floor(start), min(math.ceil(start + length), limit)


def _hottest(raw: np.ndarray, geometry: Geometry) -> tuple[float, float]:
    """(x, y) in source pixels of the centre of the hottest cell inside the image."""
    centres, seen = [], []
    for cells, network, (start, stop, gain, offset) in zip(raw.shape, geometry.network, geometry.axes, strict=True):
        centres.append(((np.arange(cells) + 0.5) * network / cells - offset) / gain)
        seen.append((centres[-1] >= start) & (centres[-1] < stop))
    row, column = np.unravel_index(np.where(np.outer(*seen) & np.isfinite(raw), raw, -np.inf).argmax(), raw.shape)
    return float(centres[1][column]), float(centres[0][row])
