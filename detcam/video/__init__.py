"""Videos: every frame, every object, its heatmap.

`for frame in detcam.video.explain(source, explainer): ...` gives frames with objects, tracks and heatmaps; `Sink`
writes pictures to a file; `write` does both, which is what `detcam video` runs.
"""

from detcam.video.frame import Frame
from detcam.video.paint import VIEWS, Style
from detcam.video.pipeline import Stats, explain
from detcam.video.sink import Sink
from detcam.video.source import Source, open_source
from detcam.video.tracks import Heat
from detcam.video.writer import write

__all__ = ["VIEWS", "Frame", "Heat", "Sink", "Source", "Stats", "Style", "explain", "open_source", "write"]
