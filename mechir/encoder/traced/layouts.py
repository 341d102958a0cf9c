"""Where things are in each architecture: one row per model type, dotted paths below the body or below one layer.

To add an architecture, add a row to `LAYOUTS` and a tiny random model of it to `tests/rerankers.py`: the certificate of
the model then proves that every hook acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mechir.parts import Structure


class Layout(NamedTuple):
    """The modules of an architecture, by their role.

    `word` and `layers` lie below the body, `final_norm` too; all else below one layer. `attention` calls the attention
    function; where it calls none, `pattern` is the module that reads the pattern, and `q`, `k`, `v` are projections.
    `attn_out` and `mlp_out` are the modules whose outputs are added to the residual stream. `turned`: the projections
    of q and k below `attention`, or of all three in one, where both are turned by their positions.
    """

    norm: Literal["post", "pre", "both"]
    positions: Literal["absolute", "rotary", "relative"]
    layers: str
    word: str
    attention: str
    o: str
    attn_out: str
    ln1: str
    activation: str
    w_out: str
    mlp_out: str
    ln2: str
    mlp_in: str
    final_norm: str = ""
    pattern: str = ""
    q: str = ""
    k: str = ""
    v: str = ""
    causal: bool = False
    scaled: bool = True
    turned: Mapping[str, str] = {}


_BERT = Layout(
    "post",
    "absolute",
    "encoder.layer",
    "embeddings.word_embeddings",
    attention="attention.self",
    o="attention.output.dense",
    attn_out="attention.output.dense",
    ln1="attention.output.LayerNorm",
    activation="intermediate.intermediate_act_fn",
    w_out="output.dense",
    mlp_out="output.dense",
    ln2="output.LayerNorm",
    mlp_in="intermediate.dense",
)
_DECODER = Layout(
    "pre",
    "rotary",
    "layers",
    "embed_tokens",
    attention="self_attn",
    o="self_attn.o_proj",
    attn_out="self_attn.o_proj",
    ln1="input_layernorm",
    activation="mlp.act_fn",
    w_out="mlp.down_proj",
    mlp_out="mlp",
    ln2="post_attention_layernorm",
    mlp_in="post_attention_layernorm",
    final_norm="norm",
    causal=True,
    turned={"q": "q_proj", "k": "k_proj"},
)
_T5 = Layout(
    "pre",
    "relative",
    "encoder.block",
    "encoder.embed_tokens",
    attention="layer.0.SelfAttention",
    o="layer.0.SelfAttention.o",
    attn_out="layer.0.SelfAttention.o",
    ln1="layer.0.layer_norm",
    activation="layer.1.DenseReluDense.act",
    w_out="layer.1.DenseReluDense.wo",
    mlp_out="layer.1.DenseReluDense.wo",
    ln2="layer.1.layer_norm",
    mlp_in="layer.1.layer_norm",
    final_norm="encoder.final_layer_norm",
    scaled=False,
)
LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta", "camembert"), _BERT),
    "distilbert": _BERT._replace(
        layers="transformer.layer",
        attention="attention",
        o="attention.out_lin",
        attn_out="attention.out_lin",
        ln1="sa_layer_norm",
        activation="ffn.activation",
        w_out="ffn.lin2",
        mlp_out="ffn.lin2",
        ln2="output_layer_norm",
        mlp_in="ffn.lin1",
    ),
    "modernbert": Layout(
        "pre",
        "rotary",
        "layers",
        "embeddings.tok_embeddings",
        attention="attn",
        o="attn.Wo",
        attn_out="attn.Wo",
        ln1="attn_norm",
        activation="mlp.act",
        w_out="mlp.Wo",
        mlp_out="mlp",
        ln2="mlp_norm",
        mlp_in="mlp_norm",
        final_norm="final_norm",
        turned={"qkv": "Wqkv"},
    ),
    "deberta-v2": _BERT._replace(
        positions="relative",
        scaled=False,
        attention="",
        pattern="attention.self.dropout",
        q="attention.self.query_proj",
        k="attention.self.key_proj",
        v="attention.self.value_proj",
    ),
    **dict.fromkeys(("qwen2", "qwen3", "llama", "mistral"), _DECODER),
    "gemma2": _DECODER._replace(
        norm="both",
        turned={},
        attn_out="post_attention_layernorm",
        ln2="pre_feedforward_layernorm",
        mlp_in="pre_feedforward_layernorm",
        mlp_out="post_feedforward_layernorm",
        scaled=False,
    ),
    **dict.fromkeys(("t5", "mt5"), _T5),
}


def structure(layout: Layout, config: Any, reads: Literal["cls", "mean", "last", "decoder"]) -> Structure:
    """The structure of a model of this layout and Hugging Face's configuration, whose head reads these rows."""
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    window = getattr(config, "sliding_window", None) if windowed else None
    return Structure(layout.norm, layout.positions, reads, layout.causal, window, layout.scaled)
