"""Lu et al. 2025 (arXiv:2502.04645): the semantic BM25 of a cross-encoder."""
