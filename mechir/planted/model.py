"""A planted model: BM25 without length normalisation, compiled into a post-LN BERT cross-encoder."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from mechir.encoder.families import FAMILIES
from mechir.encoder.fingerprint import digest
from mechir.encoder.hooked import HookedEncoder
from mechir.planted.design import N_CTX, SPECIAL, WORDS, Design
from mechir.planted.weights import compiled


class PlantedEncoder(HookedEncoder):
    """A `HookedEncoder` that knows its `design`: its dials, its words and their IDF."""

    design: Design


def bm25(
    *,
    c: float = 100.0,
    a: float = 8.0,
    k1: float = 1.2,
    sink: float = 2.0,
    rotate: bool = True,
    decoy: float | None = 0.4,
    idf_scale: float = 1.0,
    apart: bool = False,
    backup: bool = False,
    labels: int = 1,
    seed: int = 0,
    n_layers: int = 4,
    n_heads: int = 4,
    d_model: int = 128,
) -> PlantedEncoder:
    """A cross-encoder whose score is sum idf tf / (tf + k1) / (sink + sum idf), by a known circuit.

    Head 1.2 matches query tokens with document tokens and writes the saturated TF; neuron 0 of MLP 1 lets it pass
    where the query token is no stop word; head 3.1 sums over the query at CLS, weighted by an IDF that its keys read
    from the embeddings; the pooler reads the sum. Head 0.0 has the same pattern as 1.2 and writes nothing, 2.3 writes
    TF that no component reads, `decoy` is a direction like IDF that none reads, every other head and neuron makes noise
    in coordinates that nothing else reads. There are no files: the weights follow from the arguments.

    Args:
        c: the ballast at every token: 100 makes the LayerNorms transparent, 3 active, 1 violent.
        a: how much higher a matching token scores than another, in nats: 8, or 20 to saturate the softmax.
        k1: BM25's saturation.
        sink: the aggregator's weight of CLS; keeps the score below 1.
        rotate: hide the basis: an orthogonal rotation of the residual stream, and one of each head's own dimensions.
        decoy: standard deviation of the noise on log IDF in the decoy direction; None leaves the direction out.
        apart: shift and shorten the decoy so that it is orthogonal to log IDF over the words: with `idf_scale` of 5 or
            more the true direction and the decoy are then singular vectors of W_E, and both go with IDF.
        idf_scale: length of log IDF in the embeddings; the aggregator divides by it, so the score stays.
        backup: head 1.0 duplicates 1.2 and stands in where 1.2 fails to write.
        labels: 1 logit, or 2 as MonoBERT has (their difference is the score).
        seed: of IDF, noise and rotation.
        n_layers: 4 or more.
        n_heads: 4 or more.
        d_model: 98 or more, and at least 29 per head.

    Raises:
        MechirError: for dials that leave no room for the circuit.
    """
    design = Design(c, a, k1, sink, rotate, decoy, idf_scale, backup, labels, seed, n_layers, n_heads, d_model, apart)
    sizes: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "intermediate_size": d_model // 2,
        "max_position_embeddings": N_CTX,
        "num_labels": labels,
        "architectures": ["BertForSequenceClassification"],
    }
    hf = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval()
    state = {name: torch.from_numpy(value).float() for name, value in compiled(design).items()}
    for name, value in hf.state_dict().items():  # LayerNorms start with a gain of 1 and a bias of 0
        state.setdefault(name, value.clone() if "LayerNorm" in name else torch.zeros_like(value))
    hf.load_state_dict(state, strict=True)
    calibrate(hf)
    # The digests are those before `calibrate`, whose results are rounded otherwise on another CPU.
    tensors = {name: digest(value) for name, value in state.items()} | {"design": repr(design)}
    model = PlantedEncoder(hf, tokenizer(), FAMILIES["bert"], name="planted.bm25", tensors=tensors)
    model.design = design
    return model


def calibrate(hf: Any) -> None:
    """Sets the gain of each LayerNorm, first to last, to its mean scale over tokens: the stream keeps its length."""
    norms = [module for module in hf.modules() if isinstance(module, torch.nn.LayerNorm)]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(len(SPECIAL), len(SPECIAL) + len(WORDS), (8, 40), generator=draw)
    ids[:, 0], ids[:, 5], ids[:, -1] = 2, 3, 3
    types = (torch.arange(40) > 5).long().expand(8, -1)

    def gain(module: torch.nn.LayerNorm, inputs: tuple[torch.Tensor]) -> None:
        module.weight.fill_(inputs[0].var(-1, unbiased=False).sqrt()[:, 1:5].mean())

    with torch.no_grad():
        handles = [norm.register_forward_pre_hook(gain) for norm in norms]
        hf(input_ids=ids, token_type_ids=types)
        for handle in handles:
            handle.remove()


def tokenizer() -> Any:
    """The tokenizer of a planted model: whole words, lower-cased; any other word is [UNK]."""
    words = {word: place for place, word in enumerate((*SPECIAL, *WORDS))}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, words[name]) for name in ("[CLS]", "[SEP]")],
    )
    special = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=N_CTX, model_input_names=inputs, **special
    )
