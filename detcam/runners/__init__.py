"""Runners: from captured tensors and scalars to one raw coarse map per object."""
