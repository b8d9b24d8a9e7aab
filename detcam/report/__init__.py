"""Pages to look at explanations: each one file, without a server and without anything from elsewhere."""

from detcam.report.looks import Looks, looks_at
from detcam.report.write import write_report

__all__ = ["Looks", "looks_at", "write_report"]
