"""matplotlib: figures."""

from collections.abc import Sequence
from typing import Any
from unicodedata import east_asian_width

import cv2
import numpy as np
import torch

from detcam.errors import InputError, needing
from detcam.explanation import Explanation
from detcam.render import colour_table
from detcam.render.labels import shortened, typeset
from detcam.render.overlay import BOX_COLOUR

PANEL = 3.2  # width of a panel in inches
BAR = 0.8  # width of the colour bar in inches
COLUMNS = 4  # panels in a row, at most
DPI = 200  # of the images in the figure
TITLE = 32  # characters in a panel's width; those of Chinese count twice


def figure(explanation: Explanation, objects: Sequence[int] | None, alpha: float, colormap: str) -> Any:
    """See `Explanation.to_matplotlib`."""
    with needing('to_matplotlib needs matplotlib: pip install "detcam[evaluate]"'):
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha: expected a number in [0, 1], got {alpha}")
    scale = ScalarMappable(cmap=ListedColormap(colour_table(colormap) / 255, colormap))
    scale.set_clim(0, 1)
    chosen = list(range(len(explanation)) if objects is None else objects)
    height, width = explanation.geometry.source
    columns = min(len(chosen) + 1, COLUMNS)
    rows = -(-(len(chosen) + 1) // columns)
    panel_height = min(max(PANEL * height / width, 1.0), 2 * PANEL) + 0.4  # for the title
    drawn = Figure(figsize=(PANEL * columns + BAR, panel_height * rows), dpi=DPI, layout="constrained")
    panels = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    panels[0].imshow(explanation.image)
    panels[0].set_title(f"{len(explanation)} object{'' if len(explanation) == 1 else 's'}")
    for i, axes in zip(chosen, panels[1:], strict=False):
        heat = explanation.render([i], dtype=torch.float32)[0].cpu().numpy()
        axes.imshow(explanation.image)
        axes.imshow(heat, cmap=scale.cmap, norm=scale.norm, alpha=alpha * heat**0.5)
        font, text = typeset(explanation.titles[i], opencv=False)
        text = shortened(text, lambda cut: sum(1 + (east_asian_width(c) in "WF") for c in cut) <= TITLE)
        # With parse_math, matplotlib takes dollar signs in a label for a formula.
        axes.set_title(text, parse_math=False, **({"fontproperties": font, "fontsize": "large"} if font else {}))
        for place in (panels[0], axes):
            for patch in _outlines(explanation, i):
                place.add_patch(patch)
    if chosen:
        drawn.colorbar(scale, ax=list(panels), aspect=30, label="heat, relative to each object's maximum")
    return drawn


def _outlines(explanation: Explanation, i: int) -> list[Any]:
    """Patches around the parts of the object's mask, or around its box."""
    from matplotlib.patches import Polygon, Rectangle

    style: dict[str, Any] = {"fill": False, "edgecolor": [c / 255 for c in BOX_COLOUR], "linewidth": 1.5}
    if explanation.masks is not None:
        mask = explanation.masks[i].cpu().numpy().astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        return [Polygon(contour[:, 0], **style) for contour in contours]
    x1, y1, x2, y2 = (side - 0.5 for side in explanation.boxes[i].tolist())  # a pixel's centre is the origin
    return [Rectangle((x1, y1), x2 - x1, y2 - y1, **style)]
