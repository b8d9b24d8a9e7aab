"""Videos: heatmaps for the objects of every frame.

`detcam.video.explain(source, explainer)` yields frames with objects, tracks and heatmaps; `Sink` writes images to a
video file; `write`, which `detcam video` runs, does both.
"""

from detcam.video.frame import VIEWS, Frame, Style
from detcam.video.pipeline import Stats, explain
from detcam.video.readers import open_source
from detcam.video.sink import Sink
from detcam.video.source import Source
from detcam.video.tracks import Heat
from detcam.video.writer import write

__all__ = ["VIEWS", "Frame", "Heat", "Sink", "Source", "Stats", "Style", "explain", "open_source", "write"]
