"""Adapters for models of torchvision."""
