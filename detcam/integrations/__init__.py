"""Integrations: conversions between explanations and the data types of other libraries, a module for each."""

from detcam.integrations.supervision import HeatAnnotator
from detcam.integrations.torchvision import Drawable

__all__ = ["Drawable", "HeatAnnotator"]
