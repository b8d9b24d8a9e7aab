"""Metrics: where heat lies, whether the score follows it, and whether it is stable."""
