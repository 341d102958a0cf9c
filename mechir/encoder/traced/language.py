"""Language models as rerankers: the words whose logits are the score, and the prompt that they follow.

A causal model says the word after the prompt; a model with a decoder, such as T5, reads the prompt and says it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mechir.encoder.checkpoint import read_json
from mechir.encoder.cross_encoder import HARMLESS_OF_LANGUAGE, Settings, module_settings
from mechir.encoder.fingerprint import stored_digests
from mechir.encoder.stored import Files, device_of, number_type, revision_of
from mechir.encoder.traced.decoder import DECODERS
from mechir.encoder.traced.layouts import LAYOUTS
from mechir.encoder.traced.loading import inside, refuse_processing
from mechir.encoder.traced.model import ANY_LENGTH, TracedReranker
from mechir.encoder.traced.prompt import Prompt
from mechir.encoder.traced.readout import FirstWord, NextWord
from mechir.errors import MechirError
from mechir.templates import EXAMPLE, Template, as_template

CAUSAL, DECODED = "ForCausalLM", "ForConditionalGeneration"
"""How the names of language models end: causal ones, and those with a decoder."""
WORDS = {CAUSAL: ("no", "yes"), DECODED: ("\u2581false", "\u2581true")}
"""The words of a reranker that says no others: not relevant, relevant."""
SCORED = {"Transformer", "LogitScore"}
"""The modules of a `CrossEncoder` that is a language model."""
TRAINED_ON = 512
"""The word pieces of the texts that T5 was trained on: its limit where the tokenizer has none."""


def load(
    folder: Path,
    name: str,
    *,
    dtype: str | torch.dtype = "float32",
    words: Sequence[str] | None = None,
    **options: Any,
) -> TracedReranker:
    """Loads a language model as a reranker; see `language_model` for its options.

    What sentence-transformers saved beside it counts: the words of its LogitScore, its prompt and its length.
    """
    saved = _saved(folder)
    files = Files.of(saved.settings)
    hf, tokenizer, reading = files.opened_as_named(number_type(dtype))
    refuse_processing(saved.settings.processing, options.get("template"))
    given = {"template": options.get("template"), "instruction": options.get("instruction")}
    given["words"] = None if words is None else tuple(words)
    if words is None and saved.words:
        words = tokenizer.convert_ids_to_tokens(list(saved.words))
    return language_model(
        hf,
        tokenizer,
        words=words,
        name=name,
        reading=reading,
        revision=revision_of(folder),
        tensors=stored_digests(files.stored),
        prompt_options=tuple((name, value) for name, value in given.items() if value is not None),
        **_with_saved_prompt(saved.prompt, options),
    )


def language_model(
    hf: Any,
    tokenizer: Any,
    *,
    template: Template | str | None = None,
    instruction: str | None = None,
    words: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    relevant_label: int | str | None = None,
    **options: Any,
) -> TracedReranker:
    """Wraps a language model whose next word says whether a document is relevant.

    Args:
        hf: Hugging Face's `*ForCausalLM`, or a `T5ForConditionalGeneration` or mT5.
        tokenizer: its tokenizer.
        template: the prompt, such as "Query: {query} Document: {document} Relevant:", which is T5's default; of a
            causal model it is the tokenizer's chat template, which has the roles query and document.
        instruction: what the chat template has as the role system.
        words: of what is not relevant and of what is, one word piece each: the score is the difference of their logits.
            With one word it is that word's logit.
        device: as in `HookedEncoder.from_pretrained`.
        relevant_label: the word that means relevance; by default the last.
        options: those of `TracedReranker`.

    Raises:
        MechirError: for a model type without a row in `LAYOUTS`, no tokenizer, no prompt, words that are no piece, or
            an instruction without a place in the prompt.
    """
    kind = _kind(hf, tokenizer)
    words = tuple(words or WORDS[kind])
    ids = _pieces(tokenizer, words, WORDS[kind])
    if kind == DECODED:
        template = template or EXAMPLE
        if options.get("max_length") is None:
            options["max_length"] = _limit(tokenizer)
    if template is None:
        prompt = Prompt(Template.of_chat(tokenizer, instruction), instruction, chat=True)
    else:
        prompt = Prompt(_without_roles(template, instruction))
    label = len(words) - 1 if relevant_label is None else relevant_label
    options |= {"prompt": prompt, "relevant_label": label}
    readout = FirstWord(words, ids, _start(hf.config)) if kind == DECODED else NextWord(words, ids)
    return TracedReranker(hf.to(device_of(device)), hf, tokenizer, readout, **options)


def _kind(hf: Any, tokenizer: Any) -> str:
    """How the name of a model ends, `CAUSAL` or `DECODED`; raises for a model that is neither, or has no tokenizer."""
    name, kind = type(hf).__name__, DECODED if hf.config.model_type in DECODERS else CAUSAL
    if hf.config.model_type not in LAYOUTS or not name.endswith(kind):
        raise MechirError(
            f"This is a {name}, which mechir cannot open: it opens language models of {', '.join(LAYOUTS)}."
        )
    if tokenizer is None:
        raise MechirError(f"A {name} in memory needs its tokenizer: write mi.load(model, tokenizer).")
    return kind


def _without_roles(template: Template | str, instruction: str | None) -> Template:
    """A prompt that is no chat template; raises for an instruction, for which it has no place."""
    if instruction is not None:
        raise MechirError(
            f"instruction={instruction!r} has no place in a prompt without roles: write it into the template, such as "
            f"template='{instruction} {EXAMPLE}'."
        )
    return as_template(template)


def _with_saved_prompt(prompt: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options with the prompt of a `CrossEncoder` as instruction, where they give neither that nor a template."""
    return options if options.get("template") is not None else {"instruction": prompt} | options


def _limit(tokenizer: Any) -> int | None:
    """The limit of a T5 whose tokenizer has none; None where it has one."""
    return TRAINED_ON if tokenizer.model_max_length > ANY_LENGTH else None


def _start(config: Any) -> int:
    """The id with which the decoder begins: the padding, where a configuration says nothing."""
    start = getattr(config, "decoder_start_token_id", None)
    return int(config.pad_token_id if start is None else start)


def _pieces(tokenizer: Any, words: Sequence[str], usual: Sequence[str]) -> tuple[int, ...]:
    """The ids of words that are one word piece each; raises for any other, with the usual ones as an example."""
    ids = tokenizer.convert_tokens_to_ids(list(words))
    if unknown := [word for word, at in zip(words, ids, strict=True) if at in (None, tokenizer.unk_token_id)]:
        raise MechirError(
            f"'{unknown[0]}' is no word piece of this tokenizer, whose logit would be the score: name the words that "
            f"the model says of what is not relevant and of what is, such as words={tuple(usual)}."
        )
    return tuple(ids)


def is_scored(encoder: Any) -> bool:
    """Whether a `CrossEncoder` is a language model with a LogitScore."""
    return [type(module).__name__ for module in encoder] == ["Transformer", "LogitScore"]


def of_chain(encoder: Any, **options: Any) -> TracedReranker:
    """Wraps a `CrossEncoder` that is a language model with a LogitScore, with its words, prompt and length."""
    tokenizer, score = encoder.tokenizer, encoder[1]
    ids = [at for at in (score.false_token_id, score.true_token_id) if at is not None]
    if encoder.max_seq_length is not None:
        tokenizer.model_max_length = encoder.max_seq_length
    refuse_processing(encoder[0].processing_kwargs, options.get("template"))
    prompt = (encoder.prompts or {}).get(encoder.default_prompt_name or "")
    options = {"words": tokenizer.convert_ids_to_tokens(ids)} | _with_saved_prompt(prompt, options)
    return language_model(encoder[0].auto_model, tokenizer, **options)


def is_language_model(folder: Path) -> bool:
    """Whether a directory holds a language model, by itself or with the LogitScore of sentence-transformers."""
    modules = _modules(folder)
    inner = inside(folder, modules["Transformer"]) if set(modules) == SCORED else folder
    config = inner / "config.json"
    listed = (read_json(config).get("architectures") or [""]) if config.is_file() else [""]
    return is_named_so(str(listed[0]))


def is_named_so(kind: str) -> bool:
    """Whether a class of Hugging Face's is a language model, by its name."""
    return kind.endswith((CAUSAL, DECODED))


class Saved(NamedTuple):
    """What sentence-transformers saved of a language model: its settings, the ids of its words, its prompt."""

    settings: Settings
    words: tuple[int, ...] = ()
    prompt: str | None = None


def _saved(folder: Path) -> Saved:
    modules = _modules(folder)
    if set(modules) != SCORED:
        return Saved(Settings(folder))
    score = read_json(inside(folder, modules["LogitScore"]) / "config.json")
    words = tuple(at for at in (score.get("false_token_id"), score.get("true_token_id")) if at is not None)
    whole = read_json(folder / "config_sentence_transformers.json")
    prompt = (whole.get("prompts") or {}).get(whole.get("default_prompt_name") or "") or None
    return Saved(module_settings(inside(folder, modules["Transformer"]), HARMLESS_OF_LANGUAGE), words, prompt)


def _modules(folder: Path) -> dict[str, Any]:
    """The modules that a directory of sentence-transformers lists, by the names of their classes."""
    file = folder / "modules.json"
    listed = read_json(file, list) if file.is_file() else []
    return {str(module.get("type", "")).rpartition(".")[2]: module for module in listed}
