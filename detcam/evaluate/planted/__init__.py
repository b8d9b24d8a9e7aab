"""Evaluation on planted scenes: drawn scenes with a known cause of each class."""
