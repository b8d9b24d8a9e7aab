"""Pages to look at explanations: each one file, without a server and without anything from elsewhere."""

from detcam.analysis.heat_summary import Looks, looks_at
from detcam.report.write import write_report

__all__ = ["Looks", "looks_at", "write_report"]
