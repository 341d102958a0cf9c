"""Chen et al. 2024 (arXiv:2405.02503): activation patching of term frequency."""
