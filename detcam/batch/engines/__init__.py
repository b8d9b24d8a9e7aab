"""Engines: run the chunks of a job on this machine or on a Ray cluster."""
