"""Tensors of a checkpoint that the model does not use: few of them are harmless."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mechir.errors import MechirError

HARMLESS = re.compile(
    r"(^|\.)(position_ids|token_type_ids)$"
    r"|^(cls\.(predictions|seq_relationship)|lm_head|vocab_(transform|layer_norm|projector)|generator_(predictions|lm_head)"
    r"|discriminator_predictions)\."
    r"|^(roberta|camembert|xlm_roberta)\.pooler\."
)
"""Buffers of positions, heads of language models, and the pooler that RoBERTa's classifiers pass over."""
ADAPTER = re.compile(r"lora_|\.base_layer\.|^base_model\.|adapter|ia3_|prefix_encoder|prompt_encoder|modules_to_save")


def refuse_surplus(folder: Path, unused: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """The names that Hugging Face has no place for, sorted; raises unless all are harmless."""
    names = sorted(unused)
    surplus = [name for name in names if not HARMLESS.search(name)]
    if not surplus:
        return names
    listed = f"{surplus[0]}, {len(surplus)} in all"
    if any(ADAPTER.search(name) for name in surplus):
        raise MechirError(
            f"The weights of '{folder}' hold an adapter ({listed}) that the model would leave out: merge it "
            "(merge_and_unload() of peft) and save the result."
        )
    layers = [int(match[1]) for name in surplus if (match := re.search(r"\.layer\.(\d+)\.", name))]
    key = "n_layers" if "n_layers" in config else "num_hidden_layers"
    if layers and max(layers) >= int(config.get(key, 12)):
        raise MechirError(
            f"The weights of '{folder}' hold {max(layers) + 1} layers ({listed}), but {key} in config.json is "
            f"{config.get(key, 12)}: write {max(layers) + 1} there, or take the tensors out of the weights."
        )
    raise MechirError(
        f"The weights of '{folder}' hold tensors that the model has no place for ({listed}) and would leave out: take "
        "them out of the weights if the scores do not need them."
    )
