"""The dataset that a job writes: Parquet shards, and reading them back."""
