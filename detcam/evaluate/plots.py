"""Plots of the report: intervals of every measure, and the agreement of maps."""

from pathlib import Path
from typing import Any

from detcam.errors import needing

COLUMNS = 4  # panels side by side


def draw(folder: Path, document: dict[str, Any]) -> list[Path]:
    """Write `intervals.png` and `agreement.png` for a report; their paths; a DependencyError without matplotlib."""
    with needing('plots need matplotlib: pip install "detcam[evaluate]"'):
        from matplotlib.figure import Figure  # without pyplot: no window, no state
    if not document["contenders"]:
        return []
    paths = [folder / "intervals.png", folder / "agreement.png"]
    intervals(Figure, document).savefig(paths[0], dpi=110)
    if len(document["agreement"]["names"]) < 2:
        return paths[:1]
    agreement(Figure, document).savefig(paths[1], dpi=110)
    return paths


def intervals(figure: Any, document: dict[str, Any]) -> Any:
    """A panel for each measure: a dot at each contender's mean and a line over its interval; the best in orange."""
    names, measures = list(document["contenders"]), document["measures"]
    rows = -(-len(measures) // COLUMNS)
    drawn = figure(figsize=(3.2 * COLUMNS + 2, rows * (0.9 + 0.19 * len(names))), layout="constrained")
    axes = drawn.subplots(rows, COLUMNS, squeeze=False, sharey=True)
    for panel in axes.flat[len(measures) :]:
        panel.set_visible(False)
    for panel, measure in zip(axes.flat, measures, strict=False):
        values = [(place, document["contenders"][name][measure["name"]]) for place, name in enumerate(names)]
        values = [(place, value) for place, value in values if value["mean"] is not None]
        best = (max if measure["better"] == "higher" else min)((v["mean"] for _, v in values), default=None)
        colours = ["#b3541e" if v["mean"] == best else "#5b6c7d" for _, v in values]
        places, means = [place for place, _ in values], [v["mean"] for _, v in values]
        lows, highs = (
            [m if v[end] is None else v[end] for m, (_, v) in zip(means, values, strict=True)]
            for end in ("low", "high")
        )
        panel.hlines(places, lows, highs, colors=colours, lw=1.6, alpha=0.6)
        panel.scatter(means, places, c=colours, s=16)
        panel.set_title(f"{measure['name']} ({measure['better']} is better)", size=8)
        panel.tick_params(labelsize=7)
        panel.grid(axis="x", alpha=0.25)
    axes[0, 0].set_yticks(range(len(names)), names)  # shared by all panels
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    return drawn


def agreement(figure: Any, document: dict[str, Any]) -> Any:
    """Matrix of rank correlations between the maps of every two contenders."""
    names = document["agreement"]["names"]
    matrix = [[float("nan") if v is None else v for v in line] for line in document["agreement"]["matrix"]]
    side = 2.5 + 0.26 * len(names)
    drawn = figure(figsize=(side + 1, side), layout="constrained")
    panel = drawn.subplots()
    image = panel.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    panel.set_xticks(range(len(names)), names, rotation=90)
    panel.set_yticks(range(len(names)), names)
    panel.tick_params(labelsize=7)
    panel.set_title("rank correlation between maps of the same object", size=9)
    drawn.colorbar(image, shrink=0.7)
    return drawn
