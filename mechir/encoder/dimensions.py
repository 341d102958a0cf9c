"""The sizes of a model, under the names of TransformerLens's `cfg`."""

from __future__ import annotations

from typing import Any

from mechir.encoder.families import Family
from mechir.reranker import Dimensions, Parts


def dimensions(config: Any, family: Family, name: str, of: Parts) -> Dimensions:
    """The sizes of a model called `name` with these parts and Hugging Face's configuration."""
    layer = of.layers[0]
    d_model = layer.q.in_features
    n_heads = config.num_attention_heads
    n_ctx = of.embeddings.position.num_embeddings
    return Dimensions(
        model_name=name,
        family=family.body,
        n_layers=len(of.layers),
        n_heads=n_heads,
        d_model=d_model,
        d_head=d_model // n_heads,
        d_mlp=layer.mlp_in.out_features,
        d_vocab=of.embeddings.word.num_embeddings,
        n_ctx=n_ctx - config.pad_token_id - 1 if family.positions_from_padding else n_ctx,
        n_labels=of.classifier.out_features,
        act_fn=getattr(config, "hidden_act", None) or config.activation,
    )
