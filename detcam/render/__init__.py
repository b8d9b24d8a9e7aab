"""From heatmaps to pictures and files."""

from detcam.render.files import save
from detcam.render.overlay import COLORMAPS, blend, contact_sheet, draw_box

__all__ = ["COLORMAPS", "blend", "contact_sheet", "draw_box", "save"]
