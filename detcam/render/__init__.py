"""Rendering: heatmaps and boxes drawn on images."""

from detcam.render.overlay import COLORMAPS, blend, colour_table, contact_sheet, draw_box_on, shrunk

__all__ = ["COLORMAPS", "blend", "colour_table", "contact_sheet", "draw_box_on", "shrunk"]
