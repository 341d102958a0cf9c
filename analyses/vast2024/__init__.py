"""Vast et al. 2024 (arXiv:2406.19309): neurons that carry relevance."""
