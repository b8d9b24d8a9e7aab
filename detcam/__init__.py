"""A heatmap for every object that a detector or segmenter finds: which pixels made the model predict it."""

from detcam import layers, video
from detcam.analysis.comparison import compare
from detcam.analysis.tiles import explain_tiles
from detcam.errors import DetcamError, InputError
from detcam.explainer import Explainer
from detcam.explanation import Explanation
from detcam.integrations.ultralytics import explain_results, ultralytics_callback
from detcam.types import Objects

__version__ = "0.1.0"
__all__ = [
    "DetcamError", "Explainer", "Explanation", "InputError", "Objects", "compare", "explain_results",
    "explain_tiles", "layers", "ultralytics_callback", "video",
]  # fmt: skip
