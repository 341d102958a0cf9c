"""Drawings of frames; the only place that knows a plotting library."""
