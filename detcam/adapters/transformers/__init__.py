"""Adapters for models of transformers."""
