"""The command line."""

from detcam.cli.app import main, run

__all__ = ["main", "run"]
