"""Two explanations of the same pictures side by side: what two models, methods, layers or targets disagree about."""

from detcam.compare.pairs import Comparison, Pair, compare
from detcam.compare.write import write_comparison

__all__ = ["Comparison", "Pair", "compare", "write_comparison"]
