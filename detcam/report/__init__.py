"""Report pages: explanations in a browser, each page one self-contained file."""

from detcam.report.write import write_report

__all__ = ["write_report"]
