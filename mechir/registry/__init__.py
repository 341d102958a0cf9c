"""Stored runs: the only place that knows Parquet."""
