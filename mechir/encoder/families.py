"""The paths of each family's tensors: one row per family, one forward for all.

To add a family, add a row to `FAMILIES` and a tiny random model of it to `tests/models.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import nn

from mechir.parts import Dimensions, Embeddings, Layer, Parts


class Family(NamedTuple):
    """One row: the class that Hugging Face has for it, and dotted paths below that class or below one layer."""

    architecture: str
    body: str
    layers: str
    q: str = "attention.self.query"
    k: str = "attention.self.key"
    v: str = "attention.self.value"
    o: str = "attention.output.dense"
    ln1: str = "attention.output.LayerNorm"
    mlp_in: str = "intermediate.dense"
    mlp_out: str = "output.dense"
    ln2: str = "output.LayerNorm"
    activation: str = "intermediate.intermediate_act_fn"
    pooler: str = "classifier.dense"
    pooler_activation: Callable[[torch.Tensor], torch.Tensor] = torch.tanh
    classifier: str = "classifier.out_proj"
    positions_from_padding: bool = False
    """RoBERTa counts positions from `pad_token_id + 1` and gives every pad the position `pad_token_id`."""


_ROBERTA = Family("RobertaForSequenceClassification", "roberta", "encoder.layer", positions_from_padding=True)

FAMILIES: dict[str, Family] = {
    "bert": Family(
        "BertForSequenceClassification", "bert", "encoder.layer", pooler="bert.pooler.dense", classifier="classifier"
    ),
    "electra": Family(
        "ElectraForSequenceClassification", "electra", "encoder.layer", pooler_activation=nn.functional.gelu
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA._replace(architecture="XLMRobertaForSequenceClassification"),
    "camembert": _ROBERTA._replace(architecture="CamembertForSequenceClassification"),
    "distilbert": Family(
        "DistilBertForSequenceClassification",
        "distilbert",
        "transformer.layer",
        q="attention.q_lin",
        k="attention.k_lin",
        v="attention.v_lin",
        o="attention.out_lin",
        ln1="sa_layer_norm",
        mlp_in="ffn.lin1",
        mlp_out="ffn.lin2",
        ln2="output_layer_norm",
        activation="ffn.activation",
        pooler="pre_classifier",
        pooler_activation=torch.relu,
        classifier="classifier",
    ),
}


def parts(hf: nn.Module, family: Family) -> Parts:
    """The modules of a Hugging Face classifier, at the family's paths."""
    body: Any = getattr(hf, family.body)
    embeddings = body.embeddings
    return Parts(
        Embeddings(
            embeddings.word_embeddings,
            embeddings.position_embeddings,
            getattr(embeddings, "token_type_embeddings", None),
            embeddings.LayerNorm,
            getattr(body, "embeddings_project", None),
        ),
        tuple(
            Layer(**{name: attrgetter(getattr(family, name))(block) for name in Layer._fields})
            for block in attrgetter(family.layers)(body)
        ),
        attrgetter(family.pooler)(hf),
        family.pooler_activation,
        attrgetter(family.classifier)(hf),
    )


def dimensions(config: Any, family: Family, name: str, parts: Parts, n_params: int) -> Dimensions:
    """The sizes of a model called `name` with these parts and Hugging Face's configuration."""
    layer, n_heads = parts.layers[0], config.num_attention_heads
    n_ctx = parts.embeddings.position.num_embeddings
    return Dimensions(
        model_name=name,
        family=family.body,
        n_layers=len(parts.layers),
        n_heads=n_heads,
        d_model=layer.q.in_features,
        d_head=layer.q.in_features // n_heads,
        d_mlp=layer.mlp_in.out_features,
        d_vocab=parts.embeddings.word.num_embeddings,
        n_ctx=n_ctx - config.pad_token_id - 1 if family.positions_from_padding else n_ctx,
        n_labels=parts.classifier.out_features,
        act_fn=getattr(config, "hidden_act", None) or config.activation,
        n_params=n_params,
    )
