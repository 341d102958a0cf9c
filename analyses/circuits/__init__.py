"""Circuits of a post-LN encoder: the edges that carry relevance, found, run alone, and tested (docs/circuits.md)."""
