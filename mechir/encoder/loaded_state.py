"""What the parameters of a model were when it was loaded, and what has changed since."""

from __future__ import annotations

import torch
from torch import nn

from mechir.encoder.fingerprint import digests

ROUNDED = (torch.bfloat16, torch.float16)
"""Number types with fewer digits than the scores are computed in."""


class LoadedState:
    """The digests of a model's parameters, and the number type that they were rounded to, if they were."""

    def __init__(self, hf: nn.Module, dtype: torch.dtype) -> None:
        self.digests = digests(hf)
        self.rounded_to = dtype if dtype in ROUNDED else None

    def changes(self, hf: nn.Module, dtype: torch.dtype) -> list[str]:
        """The names of what is another one now; what was rounded once stays rounded in a finer number type."""
        now = digests(hf)
        names = [name for name in (self.digests | now) if self.digests.get(name) != now.get(name)]
        rounded = self.rounded_to not in (None, dtype)
        return [*names, f"number type ({str(self.rounded_to).removeprefix('torch.')} before)"] if rounded else names

    def converted(self, hf: nn.Module, dtype: torch.dtype) -> None:
        """Takes another number type for no change; where digits were lost, that is remembered."""
        now = digests(hf)
        if now != self.digests:
            self.digests, self.rounded_to = now, dtype
