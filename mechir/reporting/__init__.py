"""The report of a registry: what is known, in words, tables and figures, on one page."""
