"""Adapters for models of Ultralytics."""
