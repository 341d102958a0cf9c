"""Rerankers of any structure: Hugging Face's own forward, opened by nnsight and by one attention function."""
