"""Analyses: functions from a model and pairs to tidy frames."""
