"""TransformerLens's cache of activations, without the sums that have no meaning in a post-LN model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from transformer_lens import ActivationCache

from mechir.errors import MechirError


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(self: ActivationCache, *arguments: Any, **options: Any) -> NoReturn:
        raise MechirError(
            f"cache.{name} adds up what components wrote, and the stream of a post-LN model is no such sum: patch "
            "(mechir.methods.patching), follow paths (mechir.methods.paths), or read depths (mechir.methods.lens)."
        )

    return refuse


class PostNormCache(ActivationCache):
    """An `ActivationCache` of a post-LN model: activations by hook name.

    Every sublayer's output is normalised together with the skip path, so the stream is no sum of outputs, and the
    methods that add them up, or apply a final norm, would return numbers that mean nothing: they raise.
    """


for _name in (
    *("accumulated_resid", "decompose_resid", "get_full_resid_decomposition", "logit_attrs", "logit_lens"),
    *("stack_head_results", "stack_neuron_results", "compute_head_results", "get_neuron_results", "apply_ln_to_stack"),
):
    setattr(PostNormCache, _name, _refused(_name))
