"""What loads, what is refused and how the refusal reads, and the one way from a pickle to safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.encoder.convert import convert, fetch_model
from mechir.errors import MechirError
from tests.models import PAIRS, Checkpoints, build, tokenizer


@pytest.fixture
def copy(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A tiny BERT of one's own, to be spoilt."""
    return Path(shutil.copytree(checkpoints.path("bert"), tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "remove"}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_monobert_s_layout_is_refused_with_the_command_and_loads_after_it(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder, out = checkpoints.monobert_layout(), tmp_path / "converted"
    with pytest.raises(
        MechirError, match=r"holds only a pickle \(pytorch_model.bin\).*run `mechir convert .* --out DIR`"
    ):
        mi.load(folder)
    record = convert(folder, out)
    assert json.loads((out / "conversion.json").read_text()) == record
    assert len(record["pickle_sha256"]["pytorch_model.bin"]) == 64
    model = mi.load(out)
    assert model.cfg.n_labels == 2
    assert model.certify(PAIRS)["score"] <= 2e-6
    reference = build("bert", labels=2)
    batch = model.batch(PAIRS)
    logits = reference(batch.input_ids, batch.attention_mask.long(), batch.token_type_ids).logits
    torch.testing.assert_close(model.score(PAIRS), (logits[:, 1] - logits[:, 0]).detach(), atol=1e-5, rtol=0)


def test_vocab_txt_gives_the_same_word_pieces_as_the_tokenizer(checkpoints: Checkpoints, tmp_path: Path) -> None:
    converted = tmp_path / "converted"
    convert(checkpoints.monobert_layout(), converted)
    ours, theirs = (
        mi.load(converted).encode(PAIRS),
        HookedEncoder.from_pretrained(checkpoints.path("bert")).encode(PAIRS),
    )
    assert [list(ids) for ids in ours.ids] == [list(ids) for ids in theirs.ids]
    assert [list(ids) for ids in ours.segments] == [list(ids) for ids in theirs.segments]
    with pytest.raises(MechirError, match=r"Document 'd8' holds no word piece of this tokenizer: leave it out"):
        mi.load(converted).score([mi.Pair("dog", "\x00\x01", "q7", "d8")])


def test_convert_refuses_code_and_what_is_no_checkpoint(checkpoints: Checkpoints, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    torch.save({"weight": torch.zeros(1), "code": Path}, evil / "pytorch_model.bin")
    with pytest.raises(MechirError, match=r"is no pickle of plain weights .*state_dict"):
        convert(evil, tmp_path / "out")
    torch.save([1, 2], evil / "pytorch_model.bin")
    with pytest.raises(MechirError, match="holds no tensors by name"):
        convert(evil, tmp_path / "out")
    (evil / "pytorch_model.bin").unlink()
    with pytest.raises(MechirError, match=r"holds no pickle \(pytorch_model.bin\): there is nothing to convert"):
        convert(evil, tmp_path / "out")
    with pytest.raises(MechirError, match="exists: give out= a directory that does not"):
        convert(checkpoints.monobert_layout(), evil)
    assert [file.name for file in tmp_path.iterdir()] == ["evil"]  # nothing half-written


def test_shards_and_old_names_of_layernorm_load(copy: Path, checkpoints: Checkpoints) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, kept in parts.items():
        save_file({name: tensors[name] for name in kept}, copy / file, metadata={"format": "pt"})
    (copy / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, kept in parts.items() for name in kept}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = HookedEncoder.from_pretrained(checkpoints.path("bert")).score(PAIRS)
    # Not bit for bit: tensors lie at other offsets of the files, and so are added up in another order.
    torch.testing.assert_close(HookedEncoder.from_pretrained(copy).score(PAIRS), whole, atol=1e-5, rtol=0)
    (copy / "b.safetensors").unlink()
    with pytest.raises(MechirError, match=r"lacks b.safetensors, which its index names"):
        mi.load(copy)


SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: edit_config(f, architectures=["BertForMaskedLM"]), r"is a BertForMaskedLM, which mechir cannot reproduce: it reads BertFor"),
    (lambda f: edit_config(f, architectures=["MPNetForSequenceClassification"]), r"is a MPNetForSequenceClassification"),
    (lambda f: edit_config(f, auto_map={"AutoModel": "code.py"}), r"needs code from its own repository"),
    (lambda f: edit_config(f, position_embedding_type="relative_key"), r"has position_embedding_type='relative_key'"),
    (lambda f: edit_config(f, is_decoder=True), r"has is_decoder=True"),
    (lambda f: edit_config(f, num_hidden_layers=4), r"lacks weights \(bert.encoder.layer.3"),
    (lambda f: edit_config(f, intermediate_size=64), r"has bert.encoder.layer.0.intermediate.dense.weight of shape \(48, 32\)"),
    (lambda f: edit_weights(f, lambda t: t.pop("classifier.weight")), r"lacks a sequence classifier's head weights \(classifier.weight, 1"),
    (lambda f: edit_weights(f, lambda t: t.pop("bert.pooler.dense.bias")), r"lacks a sequence classifier's head weights \(bert.pooler"),
    (lambda f: edit_weights(f, lambda t: t["classifier.bias"].fill_(float("nan"))), r"holds NaN or inf in classifier.bias"),
    (lambda f: (f / "model.safetensors").unlink(), r"holds no model.safetensors"),
    (lambda f: (f / "model.safetensors").write_bytes(b"junk" * 9), r"Cannot read '.*' as safetensors .*: download it again"),
    (lambda f: (f / "config.json").unlink(), r"is no checkpoint: it holds no config.json"),
    (lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")], r"holds no tokenizer: add tokenizer.json"),
    (lambda f: [edit_config(f, architectures="remove"), edit_weights(f, lambda t: t.pop("classifier.bias"))], r"weights match no family completely \(as BertForSequenceClassification it lacks classifier.bias\)"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), SPOILT, ids=[message[:40] for _, message in SPOILT])
def test_inexact_checkpoints_are_refused(copy: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(copy)
    with pytest.raises(MechirError, match=message):
        mi.load(copy)


def test_a_config_without_architectures_is_recognised_by_its_weights(copy: Path) -> None:
    before = mi.load(copy).score(PAIRS)
    edit_config(copy, architectures="remove", model_type="remove")
    torch.testing.assert_close(mi.load(copy).score(PAIRS), before, atol=0, rtol=0)


def test_a_bi_encoder_is_refused(tmp_path: Path) -> None:
    build("bert").bert.save_pretrained(tmp_path)
    tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(MechirError, match="is a BertModel, which mechir cannot reproduce"):
        mi.load(tmp_path)


def test_a_tokenizer_that_does_not_fit_is_refused(copy: Path) -> None:
    large = tokenizer("bert")
    large.add_tokens(["extra"])
    large.save_pretrained(copy)
    with pytest.raises(MechirError, match=r"has 49 word pieces, but the model embeds 48"):
        mi.load(copy)


def test_a_cased_vocab_without_a_tokenizer_config_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    convert(checkpoints.monobert_layout(), tmp_path / "m")
    vocab = tmp_path / "m" / "vocab.txt"
    vocab.write_text(vocab.read_text().replace("goldfish", "Goldfish"))
    with pytest.raises(MechirError, match=r"has only a vocab.txt, and it is cased"):
        mi.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, r"Cannot compute in 'float16': write one of float32, float64, bfloat16"),
        ({"device": "gpu"}, r"Unknown device 'gpu': write cpu, cuda or cuda:1"),
        ({"relevant_label": 3}, r"relevant_label=3 is out of range: the model has labels 0-0"),
    ],
)
def test_bad_options_are_refused(checkpoints: Checkpoints, options: dict, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        mi.load(checkpoints.path("bert"), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, so asking for one is no mistake")
def test_a_gpu_that_is_not_there_is_refused(checkpoints: Checkpoints) -> None:
    with pytest.raises(MechirError, match=r"There is no GPU that torch sees for device 'cuda': write device='cpu'"):
        mi.load(checkpoints.path("bert"), device="cuda")


def test_three_labels_have_no_score_until_one_is_named(checkpoints: Checkpoints) -> None:
    with pytest.raises(MechirError, match="has 3 labels and no score until you say which one is relevance"):
        mi.load(checkpoints.path("bert", labels=3)).score(PAIRS)
    model = mi.load(checkpoints.path("bert", labels=3), relevant_label=2)
    odds = model(PAIRS, return_type="logits").softmax(1)[:, 2].logit()
    torch.testing.assert_close(model.score(PAIRS), odds, atol=1e-5, rtol=0)


def test_an_unknown_readout_is_refused(tiny: HookedEncoder) -> None:
    with pytest.raises(MechirError, match=r"Unknown readout 'logit': write one of score, log_p, p"):
        tiny.score(PAIRS, readout="logit")


@pytest.mark.parametrize("error", [httpx.ConnectError("no route"), OSError("offline")])
def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    asked: list[str] = []

    def fail(name: str, **options: object) -> None:
        asked.append(name)
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(
        MechirError, match=r"Cannot get 'some/model' from the hub .*run `mechir fetch some/model`.*HF_HOME"
    ):
        mi.load("some/model")
    assert asked == ["some/model"]  # no retries


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"There is no directory './nowhere'"),
        ("a/b/c", r"There is no directory 'a/b/c'"),
        ("bad name!", r"'bad name!' is neither a directory nor a name on the hub"),
    ],
)
def test_a_name_that_is_nothing_is_refused(name: str, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        mi.load(name)


def test_the_revision_is_that_of_the_hubs_cache(checkpoints: Checkpoints, tmp_path: Path) -> None:
    shutil.copytree(checkpoints.path("bert"), tmp_path / "snapshots" / "0123abcd")
    assert mi.load(tmp_path / "snapshots" / "0123abcd").revision == "0123abcd"
    assert mi.load(checkpoints.path("bert")).revision == ""


def test_fetch_says_what_to_type_next(
    monkeypatch: pytest.MonkeyPatch, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(checkpoints.path("bert")))
    assert "mechir reads it by its name" in fetch_model("some/model")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(checkpoints.monobert_layout()))
    assert "run `mechir convert some/model --out DIR`" in fetch_model("some/model")
    with pytest.raises(MechirError, match=r"has no safetensors on the hub.*mechir convert some/model --out DIR"):
        mi.load("some/model")
    convert("some/model", tmp_path / "out")
    assert mi.load(tmp_path / "out").cfg.n_labels == 2


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (mi.Pair(" ", "a dog", "q7"), r"Query 'q7' is empty"),
        (mi.Pair("dog", "", "q7", "d8"), r"Document 'd8' \(query 'q7'\) is empty"),
        (
            mi.Pair("dog " * 70, "a dog", "q7"),
            r"Query 'q7' has 70 word pieces and alone fills the model, which reads 64",
        ),
    ],
)
def test_texts_the_model_cannot_read_are_refused(tiny: HookedEncoder, pair: mi.Pair, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        tiny.score([pair])


def test_no_pairs_are_refused(tiny: HookedEncoder) -> None:
    with pytest.raises(MechirError, match="There are no pairs to encode"):
        tiny.score([])


def test_documents_are_truncated_and_counted_queries_never(tiny: HookedEncoder) -> None:
    encoded = tiny.encode([mi.Pair("dog " * 30, "cat " * 100), mi.Pair("dog", "cat")])
    assert encoded.truncated == 1
    assert list(encoded.lengths) == [64, 5]
    kept = [mi.Segment(int(value)) for value in encoded.segments[0]]
    assert kept.count(mi.Segment.QUERY) == 30
    assert kept.count(mi.Segment.DOC) == 64 - 33
    # With 61 places for both, a query of 31 is cut by Hugging Face (the longest first); 40 beside a short one is not.
    assert list(tiny.encode([mi.Pair("dog " * 40, "cat " * 21)]).lengths) == [64]
    with pytest.raises(MechirError, match=r"Query 'q' has 31 word pieces, more than half of the 64 .* would be cut"):
        tiny.encode([mi.Pair("dog " * 31, "cat " * 100)])


def test_special_tokens_in_a_text_stay_in_their_segment(tiny: HookedEncoder) -> None:
    """A document that spells a separator is still a document; Hugging Face reads the same ids."""
    batch = tiny.batch(mi.Pair("dog", "a [SEP] cat"))
    assert [mi.Segment(int(value)) for value in batch.segment[0]][3:] == [mi.Segment.DOC] * 3 + [mi.Segment.SEP2]
    assert tiny.certify([mi.Pair("dog", "a [SEP] cat")])["score"] <= 2e-6


def test_loading_prints_nothing(checkpoints: Checkpoints, capfd: pytest.CaptureFixture[str]) -> None:
    mi.load(checkpoints.path("bert", "relu"))
    capfd.readouterr()
    mi.load(checkpoints.path("bert", "relu"))
    assert capfd.readouterr() == ("", "")
