"""Silence of the libraries while a checkpoint is read: what matters of what they say is checked here and raised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Switches progress bars and load reports of the libraries off."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
        if not bars:
            enable_progress_bars()
