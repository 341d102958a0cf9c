"""Experiments that join several papers, and those that only read the registry."""
