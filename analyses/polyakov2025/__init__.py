"""Polyakov, Chen and Eickhoff 2025 (SIGIR): metrics of patching."""
