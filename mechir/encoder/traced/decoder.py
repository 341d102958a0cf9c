"""The decoder of a model that has one, such as T5: it writes one word, and reads the encoder for it.

A layer has three parts: attention to what the decoder wrote itself (one position), attention to the encoder, an MLP.
Hook points have TransformerLens's names for an encoder-decoder: `decoder.0.cross_attn.hook_pattern`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mechir.encoder.traced.places import Place


class Decoder(NamedTuple):
    """The modules of a decoder: `layers` and `final_norm` below the body, all else below one layer.

    `attention` and `cross` call the attention function. `steps` are all other hook points of a layer, in the order in
    which they are reached: the module, "input" or "output", and the name.
    """

    layers: str
    final_norm: str
    attention: str
    cross: str
    steps: tuple[tuple[str, str, str], ...]

    def places(self, n_layers: int, heads: int) -> Iterator[Place]:
        """Every place of the decoder, in the order in which it is reached."""
        for layer in range(n_layers):
            for module, side, name in self.steps:
                path, point = f"{self.layers}.{layer}.{module}".rstrip("."), f"decoder.{layer}.{name}"
                if name.endswith("hook_z"):
                    yield Place(path, side, (point,), heads, result=point.replace("hook_z", "hook_result"))
                else:
                    yield Place(path, side, (point,))
        yield Place(self.final_norm, "output", ("decoder.ln_final.hook_normalized",))

    def attentions(self, n_layers: int) -> dict[str, str]:
        """The modules that call the attention function, by their paths, each with where its hook points are."""
        kinds = {"attn": self.attention, "cross_attn": self.cross}
        return {
            f"{self.layers}.{layer}.{module}": f"decoder.{layer}.{kind}"
            for layer in range(n_layers)
            for kind, module in kinds.items()
        }


_T5 = Decoder(
    "decoder.block",
    "decoder.final_layer_norm",
    attention="layer.0.SelfAttention",
    cross="layer.1.EncDecAttention",
    steps=(
        ("", "input", "hook_resid_pre"),
        ("layer.0.layer_norm", "output", "ln1.hook_normalized"),
        ("layer.0.SelfAttention.o", "input", "attn.hook_z"),
        ("layer.0.SelfAttention.o", "output", "hook_attn_out"),
        ("layer.1", "input", "hook_resid_mid"),
        ("layer.1.layer_norm", "output", "ln2.hook_normalized"),
        ("layer.1.EncDecAttention.o", "input", "cross_attn.hook_z"),
        ("layer.1.EncDecAttention.o", "output", "hook_cross_attn_out"),
        ("layer.2", "input", "hook_resid_mid_cross"),
        ("layer.2.layer_norm", "input", "hook_mlp_in"),
        ("layer.2.layer_norm", "output", "ln3.hook_normalized"),
        ("layer.2.DenseReluDense.act", "input", "mlp.hook_pre"),
        ("layer.2.DenseReluDense.wo", "input", "mlp.hook_post"),
        ("layer.2.DenseReluDense.wo", "output", "hook_mlp_out"),
        ("", "output", "hook_resid_post"),
    ),
)
DECODERS: dict[str, Decoder] = dict.fromkeys(("t5", "mt5"), _T5)
"""The decoder of each model type that has one; its encoder is a row of `LAYOUTS`."""
