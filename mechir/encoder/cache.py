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

    accumulated_resid = _refused("accumulated_resid")
    decompose_resid = _refused("decompose_resid")
    get_full_resid_decomposition = _refused("get_full_resid_decomposition")
    stack_head_results = _refused("stack_head_results")
    stack_neuron_results = _refused("stack_neuron_results")
    compute_head_results = _refused("compute_head_results")
    get_neuron_results = _refused("get_neuron_results")
    logit_attrs = _refused("logit_attrs")
    logit_lens = _refused("logit_lens")
    apply_ln_to_stack = _refused("apply_ln_to_stack")
