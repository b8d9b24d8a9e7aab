"""matplotlib: figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detcam.errors import needing
from detcam.render.overlay import BOX_COLOUR

if TYPE_CHECKING:
    from detcam.explanation import Explanation

PANEL = 3.2  # width of a panel in inches
COLUMNS = 4  # panels in a row, at most
OPACITY = 0.75  # of the hottest pixel, the default of Explanation.overlay


def figure(explanation: Explanation, objects: Sequence[int] | None) -> Any:
    """See `Explanation.to_matplotlib`."""
    with needing('to_matplotlib needs matplotlib: pip install "detcam[evaluate]"'):
        from matplotlib.figure import Figure
    chosen = list(range(len(explanation)) if objects is None else objects)
    height, width = explanation.geometry.source
    columns = min(len(chosen) + 1, COLUMNS)
    rows = -(-(len(chosen) + 1) // columns)
    panel_height = min(max(PANEL * height / width, 1.0), 2 * PANEL) + 0.4  # for the title
    drawn = Figure(figsize=(PANEL * columns, panel_height * rows), layout="constrained")
    panels = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    panels[0].imshow(explanation.image)
    panels[0].set_title(f"{len(explanation)} object{'' if len(explanation) == 1 else 's'}")
    for i, axes in zip(chosen, panels[1:], strict=False):
        heat = explanation.heatmaps[i].cpu().numpy()
        axes.imshow(explanation.image)
        axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=OPACITY * heat**0.5)
        # Without this, matplotlib takes dollar signs in a label for a formula.
        axes.set_title(f"{explanation.labels[i]} {float(explanation.scores[i]):.2f}", parse_math=False)
        for place in (panels[0], axes):
            place.add_patch(_outline(explanation.boxes[i].tolist()))
    return drawn


def _outline(box: Sequence[float]) -> Any:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = (side - 0.5 for side in box)  # matplotlib's origin is the centre of the first pixel
    return Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=[c / 255 for c in BOX_COLOUR], linewidth=1.5)
