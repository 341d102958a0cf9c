"""Vast et al. 2025 (arXiv:2507.14604; CORIA 2025): matching mechanisms."""
