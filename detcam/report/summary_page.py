"""The page that shows what a model looks at over a whole set of pictures, and the same figures as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detcam.analysis.box_frame import BOX, MARGIN
from detcam.analysis.heat_summary import FINE, MOSTLY, Looked, Looks, Summary, outside
from detcam.report.pack import colour_tables, pack_map, span, thumbnail
from detcam.report.page import page
from detcam.saved import Saved

CARDS = 36  # the most pictures of a kind
ALIKE = 6  # the most of one class among them
CELLS = 96  # the most rows or columns of a heatmap over a picture
SHAPE = 4 / 3  # of the place for a picture
LEAST = 64  # source pixels along a picture

Address = Callable[[Saved, int | None], str]  # of the page that shows an object


def looks_page(ways: Sequence[Looks], root: Path, address: Address, back: tuple[str, str]) -> str:
    """The page as text.

    Args:
        ways: see `looks_at`.
        root: the folder that was looked through.
        address: of the page that shows an object of an explanation.
        back: address and title of the page to go back to.
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
                "choices": looks.choices,
                "pictures": looks.pictures,
                "groups": {kind: _group(looks, kind, address) for kind in looks.kinds},
            }
            for looks in ways
        ],
    }
    return page("looks", f"What the model looks at - {name} - detcam", data, ("cards.js", "looks.js"), ("cards.css",))


def looks_json(ways: Sequence[Looks], root: Path) -> str:
    """All figures, and all objects, as JSON."""
    document = {
        "heat": "after ReLU, the least value taken to 0, each object's divided by its sum over the picture",
        "cells_along_the_box": BOX,
        "boxes_around": MARGIN,
        "ways": [looks.to_dict(root) for looks in ways],
    }
    return json.dumps(document, allow_nan=False) + "\n"


def _group(looks: Looks, kind: str, address: Address) -> dict[str, Any]:
    classes = [{"label": label, **_summary(looks.summary(kind, label))} for label in looks.labels(kind)]
    cards = [_card(one, address) for one in _shown(looks, kind)]
    return {"all": _summary(looks.summary(kind)), "classes": classes, "cards": cards}


def _summary(summary: Summary) -> dict[str, Any]:
    mean = None if summary.mean is None else pack_map(summary.mean, summary.mean.shape[0])
    return {**summary.to_dict(), "mean": mean}


def _shown(looks: Looks, kind: str) -> list[Looked]:
    """The objects to show, the largest share outside first: the first of each class, then some more of each.

    Mistakes also where the share is small; misses without a map come last, the largest box first.
    """
    mistakes = kind in ("wrong", "missed")
    ranked = sorted(looks.of(kind), key=_rank, reverse=True) if mistakes else looks.by_surroundings(kind)
    seen: Counter[str] = Counter()
    turns = []
    for one in ranked:
        turns.append(seen[one.label])
        seen[one.label] += 1
    chosen = [place for place, turn in enumerate(turns) if turn < ALIKE]
    chosen.sort(key=lambda place: (turns[place] > 0, place))
    return [ranked[place] for place in sorted(chosen[:CARDS])]


def _rank(one: Looked) -> tuple[float, float]:
    x1, y1, x2, y2 = one.box
    return outside(one), (x2 - x1) * (y2 - y1)


def _card(one: Looked, address: Address) -> dict[str, Any]:
    """An object in its picture, cut to what matters, as `cards.js` takes it."""
    raw = None if one.number is None else one.saved.maps()[one.number]
    height, width = one.saved.geometry.source
    x1, y1, x2, y2 = _view(one, raw)
    whole = np.array([width, height] * 2)
    corner, size = np.array([x1, y1] * 2), np.array([x2 - x1, y2 - y1] * 2)
    picture = {
        "name": one.saved.name,
        "page": address(one.saved, one.number),
        "width": x2 - x1,
        "height": y2 - y1,
        "thumbnail": thumbnail(one.saved, (np.array([x1, y1, x2, y2]) / whole).tolist()),
        "span": ((np.array(span(one.saved.geometry)) * whole - corner) / size).tolist(),
    }
    facts = {name: value for name, value in one.to_dict(Path()).items() if name in ("label", "score", "note", "spread")}
    return {
        "picture": picture,
        "object": {
            **facts,
            "box": (np.array(one.box) - corner).tolist(),
            "map": None if raw is None else pack_map(raw, CELLS),
        },
    }


def _view(one: Looked, raw: np.ndarray | None) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 in source pixels: the box, as much again around it, and the hottest place, in a wide window."""
    height, width = one.saved.geometry.source
    x1, y1, x2, y2 = one.box
    across, down = [2 * x1 - x2, 2 * x2 - x1], [2 * y1 - y2, 2 * y2 - y1]
    if raw is not None and one.spread is not None:
        x, y = _hottest(raw, one.saved)
        across.append(x)
        down.append(y)
    wide, high = (max(max(places) - min(places), LEAST) for places in (across, down))
    (left, right), (top, bottom) = (
        _window(places, length, limit)
        for places, length, limit in (
            (across, max(wide, high * SHAPE), width),
            (down, max(high, wide / SHAPE), height),
        )
    )
    return left, top, right, bottom


def _window(places: list[float], length: float, limit: int) -> tuple[int, int]:
    """A stretch of some length around the middle of all places, moved and cut to lie in [0, limit]."""
    length = min(length, limit)
    start = min(max((min(places) + max(places) - length) / 2, 0), limit - length)
    return math.floor(start), min(math.ceil(start + length), limit)


def _hottest(raw: np.ndarray, saved: Saved) -> tuple[float, float]:
    """(x, y) in source pixels of the middle of the hottest cell in the picture."""
    height, width = saved.geometry.source
    left, top, right, bottom = span(saved.geometry)
    x = (left + (right - left) * (np.arange(raw.shape[1]) + 0.5) / raw.shape[1]) * width
    y = (top + (bottom - top) * (np.arange(raw.shape[0]) + 0.5) / raw.shape[0]) * height
    seen = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    row, column = np.unravel_index(np.where(seen & np.isfinite(raw), raw, -np.inf).argmax(), raw.shape)
    return float(x[column]), float(y[row])
