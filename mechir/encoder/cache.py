"""TransformerLens's cache of activations, without the sums that have no meaning in a post-LN model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, cast

from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities.components_utils import get_act_name

from mechir.errors import MechirError, closest

if TYPE_CHECKING:
    from mechir.encoder.hooked_model import HookedModel


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(self: ActivationCache, *arguments: Any, **options: Any) -> NoReturn:
        post = cast("HookedModel", self.model).structure.norm == "post"
        reason = "the stream of a post-LN model is no such sum" if post else "for this model that is not offered"
        raise MechirError(
            f"cache.{name} adds up what components wrote, and {reason}: patch "
            "(mechir.methods.patching), follow paths (mechir.methods.paths), or read depths (mechir.methods.lens)."
        )

    return refuse


class PostNormCache(ActivationCache):
    """An `ActivationCache` of a post-LN model: activations by hook name.

    Every sublayer's output is normalised together with the skip path, so the stream is no sum of outputs, and the
    methods that add them up, or apply a final norm, would return numbers that mean nothing: they raise.
    """

    def __getitem__(self, key: Any) -> Tensor:
        """The activation of a hook, by its name or TransformerLens's short one: `cache["q", 0]`, `cache["pooled"]`.

        Raises:
            MechirError: for a name that the model lacks, with the closest, and for a hook that is not in this cache.
        """
        name = self._full_name(key)
        if name in self.cache_dict:
            activation: Tensor = self.cache_dict[name]
            return activation
        hooks = self._hooks
        if name in hooks:
            raise MechirError(f"This cache does not hold '{name}': it was made with a names_filter; leave it out.")
        short = dict.fromkeys(hook.rpartition("hook_")[2] for hook in hooks)
        named = str(key[0] if isinstance(key, tuple) and key else key)
        raise MechirError(
            f"There is no activation {key!r}: the closest are {closest(name, hooks)}, or in short "
            f"{closest(named, short)}, with the layer behind: cache['z', 0]."
        )

    @property
    def _hooks(self) -> Mapping[str, Any]:
        """The hook points of the model, by name."""
        return cast("HookedModel", self.model).hook_dict

    def __contains__(self, key: Any) -> bool:
        return self._full_name(key) in self.cache_dict

    def _full_name(self, key: Any) -> str:
        if not isinstance(key, str | tuple) or not key or not isinstance(key[0], str):
            return str(key)
        if key in self.cache_dict:
            return str(key)
        name, *rest = (key,) if isinstance(key, str) else key
        if rest and isinstance(rest[0], int) and rest[0] < 0:
            rest[0] += self.model.cfg.n_layers
        full = get_act_name(name, *rest)
        above = [f"{part}.{full}" for part in ("embed", "head")]
        return next((other for other in above if other in self._hooks), full)


for _name in (
    *("accumulated_resid", "decompose_resid", "get_full_resid_decomposition", "logit_attrs", "logit_lens"),
    *("stack_head_results", "stack_neuron_results", "compute_head_results", "get_neuron_results", "apply_ln_to_stack"),
):
    setattr(PostNormCache, _name, _refused(_name))
