"""From a pickle to safetensors: what Hugging Face would read, or a refusal that lists what is there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mechir as mi
from mechir.encoder.convert import convert
from mechir.errors import MechirError
from tests.models import PAIRS, build, tokenizer
from tests.references import hugging_face

TEXTS = [(pair.query, pair.document) for pair in PAIRS]


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return dict(build("bert").state_dict())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without its weights."""
    made = tmp_path / "pickled"
    build("bert").config.save_pretrained(made)
    config = json.loads((made / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (made / "config.json").write_text(json.dumps(config))
    tokenizer("bert").save_pretrained(made)
    return made


def doubled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: 2 * value for name, value in state.items()}


def test_other_pickles_are_never_merged_into_the_one_that_hugging_face_reads(
    folder: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(state, folder / "pytorch_model.bin")
    torch.save(doubled(state), folder / "pytorch_model_1.bin")
    torch.save(doubled(state), folder / "model.pt")
    record = convert(folder, tmp_path / "out")
    assert list(record["pickle_sha256"]) == ["pytorch_model.bin"]
    scores = mi.load(tmp_path / "out").score(TEXTS)
    assert scores.tolist() == pytest.approx(hugging_face(folder, TEXTS).tolist(), abs=2e-5)


def test_the_shards_of_an_index_are_read_and_nothing_beside_them(
    folder: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, kept in shards.items():
        torch.save({name: state[name] for name in kept}, folder / file)
    torch.save(doubled(state), folder / "pytorch_model-old.bin")
    index = {"metadata": {}, "weight_map": {name: file for file, kept in shards.items() for name in kept}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    record = convert(folder, tmp_path / "out")
    assert list(record["pickle_sha256"]) == list(shards)
    scores = mi.load(tmp_path / "out").score(TEXTS)
    assert scores.tolist() == pytest.approx(hugging_face(folder, TEXTS).tolist(), abs=2e-5)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(MechirError, match=r"lacks pytorch_model-00002-of-00002.bin, which its index names"):
        convert(folder, tmp_path / "again")


def test_a_trainers_files_are_no_weights(folder: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, folder / "model.pt")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin", "scaler.pt"):
        torch.save({"state": torch.zeros(3), "python": random.getstate()}, folder / name)
    assert list(convert(folder, tmp_path / "out")["pickle_sha256"]) == ["model.pt"]
    (folder / "model.pt").unlink()
    with pytest.raises(MechirError, match=r"holds no pickle \(pytorch_model.bin\): there is nothing to convert"):
        convert(folder, tmp_path / "none")


REFUSED: list[tuple[dict[str, Callable[[dict[str, torch.Tensor]], Any]], str]] = [
    ({"a.pt": lambda s: s, "b.pt": doubled}, r"holds several pickles \(a.pt, b.pt\) and no pytorch_model.bin"),
    ({"a.pt": lambda s: s, "b.bin": doubled, "c.pth": doubled}, r"several pickles \(b.bin, a.pt, c.pth\)"),
    ({"model.pt": lambda s: {f"module.{n}": v for n, v in s.items()}}, r"is called module.\(...\), as DataParallel wraps"),
    ({"model.pt": lambda s: {"state_dict": s}}, r"holds more than tensors by name \(state_dict\), as a trainer's"),
    ({"model.pt": lambda s: {"model": s, "optimizer": {"lr": 1.0}, "epoch": 3}}, r"\(model, optimizer, epoch\)"),
    ({"pytorch_model.bin": lambda s: s | {"step": 7}}, r"holds more than tensors by name \(step\)"),
    ({"pytorch_model.bin": lambda s: {}}, r"holds no tensors by name"),
    ({"model.safetensors": lambda s: s, "pytorch_model.bin": lambda s: s}, r"holds model.safetensors, which Hugging Face reads first"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_hugging_face_would_not_read_is_refused(
    folder: Path, state: dict[str, torch.Tensor], tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    for name, content in files.items():
        torch.save(content(state), folder / name)
    with pytest.raises(MechirError, match=message):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_old_folder_of_a_cross_encoder_is_converted(
    folder: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    (tmp_path / "saved").mkdir()
    inner = folder.rename(tmp_path / "saved" / "0_Transformer")
    torch.save(state, inner / "pytorch_model.bin")
    convert(tmp_path / "saved", tmp_path / "out")
    assert mi.load(tmp_path / "out").score(TEXTS).isfinite().all()


def test_what_a_cross_encoder_was_saved_with_goes_along(
    folder: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    root = tmp_path / "saved"
    root.mkdir()
    inner = folder.rename(root / "0_Transformer")
    torch.save(state, inner / "pytorch_model.bin")
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    modules = [{"idx": 0, "name": "0", "path": "0_Transformer", "type": kind}]
    (root / "modules.json").write_text(json.dumps(modules))
    (root / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "CrossEncoder"}))
    (inner / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    convert(root, tmp_path / "out")
    assert mi.load(tmp_path / "out").max_length == 16
    (inner / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(MechirError, match=r"holds an adapter \(adapter_model.bin\)"):
        convert(root, tmp_path / "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1: torch.zeros(2)}, r"holds '1', which is no plain tensor under a name"),
        ({"w": torch.eye(2).to_sparse()}, r"holds 'w', which is no plain tensor"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"is a pointer of Git LFS"),
        (b"", r"is empty: download it again"),
    ],
)
def test_a_pickle_of_something_else_is_one_sentence(folder: Path, tmp_path: Path, content: Any, message: str) -> None:
    file = folder / "pytorch_model.bin"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(MechirError, match=message):
        convert(folder, tmp_path / "out")


@pytest.mark.shared
def test_a_real_reranker_is_converted_as_hugging_face_reads_it(shared: Path, tmp_path: Path) -> None:
    """A second pickle, in which the score is turned, has a later name and is no part of the model."""
    source, made = shared / "models" / "ce-minilm-l6", tmp_path / "pickled"
    made.mkdir()
    for file in source.glob("*.json"):
        (made / file.name).write_bytes(file.read_bytes())
    state = load_file(source / "model.safetensors")
    torch.save(state, made / "pytorch_model.bin")
    turned = {name: -value if name.startswith("classifier") else value for name, value in state.items()}
    torch.save(turned, made / "pytorch_model_1.bin")
    convert(made, tmp_path / "out")
    texts = [("how do heat pumps work in winter", "A heat pump moves warmth from outside air into the house, and works in "
              "winter down to about minus twenty.")]  # fmt: skip
    assert mi.load(tmp_path / "out").score(texts).tolist() == pytest.approx([2.533], abs=1e-3)
