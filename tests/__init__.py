"""Tests run without a network; the hub's client reads this when it is first imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
