"""Engines: where the work of a job runs."""
