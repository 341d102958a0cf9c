"""A model is called by what was loaded, scores as the references do, and runs are of the model that they name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers

import mechir as mi
from mechir import cli, provenance
from mechir.encoder import HookedEncoder
from mechir.encoder.certify import BOUNDS, refuse_altered, refuse_unlike
from mechir.encoder.families import FAMILIES
from mechir.errors import MechirError
from mechir.material import Pool
from tests.models import PAIRS, TOY, TOY_MODEL, Checkpoints, build, tokenizer
from tests.references import cross_encoder, hugging_face

QUERY = "how do heat pumps work in winter"
DOCUMENTS = [
    "A heat pump moves warmth from outside air into the house, and works in winter down to about minus twenty.",
    "Bananas are rich in potassium and grow in tropical countries.",
    "In winter many people heat with wood pellets; pumps for water must be drained before frost.",
]
TEXTS = [(QUERY, document) for document in DOCUMENTS]
INTACT, NO_TYPES, ADDED = [2.533, -3.353, 1.341], [2.681, -3.225, 1.354], [1.951, -3.567, 1.221]
TABLE_1 = "vast2025/direction_ablation"


def edit(folder: Path, file: str, **changes: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(content | changes))


@pytest.fixture
def real(shared: Path, tmp_path: Path) -> Path:
    """A folder of one's own with the real cross-encoder's files."""
    folder = tmp_path / "real"
    folder.mkdir()
    for file in (shared / "models" / "ce-minilm-l6").iterdir():
        (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture
def copy(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A tiny BERT of one's own."""
    return Path(shutil.copytree(checkpoints.path("bert"), tmp_path / "model"))


def no_types(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])


def added(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"pump": 4}')


@pytest.mark.shared
@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda folder: None, INTACT), (no_types, NO_TYPES), (added, ADDED)],
    ids=["intact", "no token types", "added tokens"],
)
def test_a_real_reranker_scores_as_its_references_do(
    real: Path, trained: HookedEncoder, change: Callable[[Path], object], expected: list[float]
) -> None:
    change(real)
    model = mi.load(real)
    assert model.score(TEXTS).tolist() == pytest.approx(expected, abs=1e-3)
    assert hugging_face(real, TEXTS).tolist() == pytest.approx(expected, abs=1e-3)
    assert cross_encoder(real, TEXTS).tolist() == pytest.approx(expected, abs=1e-3)
    assert (model.fingerprint == trained.fingerprint) == (expected is INTACT)
    certificate = model.certify([mi.Pair(*texts) for texts in TEXTS])
    assert certificate["input"] == 0 and certificate["score_head_row"] < 1e-6


@pytest.mark.shared
def test_a_saved_maximum_length_is_followed(real: Path) -> None:
    edit(real, "tokenizer_config.json", model_max_length=24)
    model = mi.load(real)
    assert model.score(TEXTS).tolist() == pytest.approx(cross_encoder(real, TEXTS).tolist(), abs=1e-3)
    assert model.max_length == model.reading.max_length == 24
    assert "the tokenizer's model_max_length" in "\n".join(model.reading.lines())
    whole = mi.load(real, max_length=512)
    assert whole.score(TEXTS).tolist() == pytest.approx(INTACT, abs=1e-3)
    assert whole.fingerprint != model.fingerprint


def test_new_weights_beside_old_shards_are_another_model(copy: Path, tmp_path: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "old.safetensors")}
    save_file(tensors, copy / "old.safetensors", metadata={"format": "pt"})
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").unlink()
    first = mi.load(copy)
    save_file({name: value + 0.1 for name, value in tensors.items()}, copy / "model.safetensors", {"format": "pt"})
    second = mi.load(copy)
    assert second.fingerprint != first.fingerprint
    assert second.score(PAIRS).tolist() == pytest.approx(
        hugging_face(copy, [(p.query, p.document) for p in PAIRS]).tolist(), abs=2e-5
    )
    registry, toy = tmp_path / "registry", mi.collection(TOY)
    pool = Pool(limit_queries=1, per_grade=1)
    runs = [mi.run(TABLE_1, model, toy, pool=pool, registry=registry) for model in (first, second)]
    assert runs[0].id != runs[1].id
    assert [run.record["reading"]["weights"] for run in runs] == [["old.safetensors"], ["model.safetensors"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit(folder, "tokenizer_config.json", model_max_length=20),
        lambda folder: edit(folder, "tokenizer_config.json", truncation_side="left"),
        lambda folder: edit(folder, "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"]),
        lambda folder: edit(folder, "tokenizer_config.json", sep_token="[MASK]"),
        lambda folder: edit(folder, "tokenizer.json", normalizer=None),
        lambda folder: edit(folder, "config.json", layer_norm_eps=1e-3),
        lambda folder: edit(folder, "config.json", hidden_act="relu"),
    ],
)
def test_the_fingerprint_follows_whatever_moves_scores(copy: Path, change: Callable[[Path], object]) -> None:
    before = mi.load(copy)
    change(copy)
    after = mi.load(copy)
    assert after.fingerprint != before.fingerprint


def test_the_fingerprint_is_of_the_content_and_of_nothing_else(copy: Path, tmp_path: Path) -> None:
    before = mi.load(copy).fingerprint
    edit(copy, "config.json", transformers_version="4.0.0", _name_or_path="elsewhere", return_dict=False)
    (copy / "README.md").write_text("words")
    model = mi.load(copy.rename(tmp_path / "moved"))
    assert model.fingerprint == before
    model.score(PAIRS)  # a tokenizer keeps what it was last asked for
    assert mi.load(tmp_path / "moved").fingerprint == before
    assert mi.load(tmp_path / "moved", dtype="float64").fingerprint == before
    half = {name: value.half() for name, value in load_file(tmp_path / "moved" / "model.safetensors").items()}
    save_file(half, tmp_path / "moved" / "model.safetensors", {"format": "pt"})
    assert mi.load(tmp_path / "moved").fingerprint != before


def test_models_in_memory_are_called_by_their_state() -> None:
    models = [HookedEncoder(build("bert", seed=seed), tokenizer("bert"), FAMILIES["bert"]) for seed in (0, 0, 1)]
    prints = [model.fingerprint for model in models]
    assert prints[0] == prints[1] != prints[2] and "" not in prints
    with pytest.raises(MechirError, match="These activations are of another model"):
        models[2].score(PAIRS, mi.Ablate("h0.1", with_=mi.means(models[0], PAIRS)))


def test_a_length_is_limited_in_a_copy_that_shares_everything(tiny: HookedEncoder) -> None:
    short = tiny.limited(16)
    assert (short.max_length, tiny.max_length, short.hf) == (16, 64, tiny.hf)
    assert short.fingerprint != tiny.fingerprint
    assert tiny.limited(None) is tiny and short.limited(16) is short
    assert "reads 16 word pieces (asked for)" in "\n".join(short.reading.lines())
    assert max(short.encode(PAIRS).lengths) == 16
    torch.testing.assert_close(short.score(PAIRS), tiny.score(PAIRS, max_length=16), atol=0, rtol=0)
    for wrong in (0, 65, True):
        with pytest.raises(MechirError, match=r"max_length=.* is out of range: the model reads 1 to 64 word pieces"):
            tiny.limited(wrong)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.add_hook("blocks.0.attn.hook_z", lambda x, hook: 0 * x), r"Hooks were left in place at 'blocks.0.attn.hook_z'.*reset_hooks"),
        (lambda m: m.add_perma_hook("hook_full_embed", lambda x, hook: x), r"Hooks were left in place at 'hook_full_embed'"),
        (lambda m: m.hf.bert.encoder.layer[1].register_forward_hook(lambda *a: None), r"Hooks were left in place at 'hf.bert.encoder.layer.1'"),
        (lambda m: m.hf.classifier.register_forward_pre_hook(lambda *a: None), r"Hooks were left in place at 'hf.classifier'"),
        (lambda m: m.hf.train(), r"is in training mode, where dropout changes scores: call model.eval"),
        (lambda m: m.hf.classifier.weight.data.mul_(1.5), r"'classifier.weight' changed since '.*' was loaded.*load it anew"),
        (lambda m: m.W_E.data[3].zero_(), r"'bert.embeddings.word_embeddings.weight' changed"),
        (lambda m: setattr(m.hf.classifier, "bias", torch.nn.Parameter(torch.ones(1))), r"'classifier.bias' changed"),
        (lambda m: [p.data.neg_() for p in m.hf.parameters()], r"and \d+ more changed since"),
        (lambda m: m.to(torch.bfloat16).to(torch.float32), r"'number type \(bfloat16 before\)' changed since"),
        (lambda m: m.half(), r"is in float16: load it with dtype= one of float32, float64, bfloat16"),
        (lambda m: setattr(m.hf.bert.encoder.layer[0].output.LayerNorm, "eps", 0.5), r"'bert.encoder.layer.0.output.LayerNorm.eps' changed"),
        (lambda m: setattr(m.tokenizer.backend_tokenizer, "normalizer", normalizers.Replace("a", "b")), r"'configuration, tokenizer or max_length' changed"),
        (lambda m: setattr(m.tokenizer, "truncation_side", "left"), r"'configuration, tokenizer or max_length' changed"),
        (lambda m: setattr(m, "max_length", 16), r"'configuration, tokenizer or max_length' changed"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_the_one_it_names_is_not_run(
    tmp_path: Path, spoil: Callable[[HookedEncoder], object], message: str
) -> None:
    model, toy = mi.load(TOY_MODEL), mi.collection(TOY)
    refuse_altered(model)
    spoil(model)
    with pytest.raises(MechirError, match=message):
        mi.run(TABLE_1, model, toy, pool=Pool(limit_queries=1), registry=tmp_path / "registry")
    assert not (tmp_path / "registry").exists()


def test_a_hook_that_was_removed_leaves_nothing(tmp_path: Path) -> None:
    model, toy, pool = mi.load(TOY_MODEL), mi.collection(TOY), Pool(limit_queries=1, per_grade=1)
    clean = mi.run(TABLE_1, model, toy, pool=pool, registry=tmp_path / "clean")
    model.add_hook("blocks.0.attn.hook_z", lambda x, hook: 0 * x)
    with pytest.raises(MechirError, match="Hooks were left in place"):
        mi.run(TABLE_1, model, toy, pool=pool, registry=tmp_path / "other")
    model.reset_hooks()
    again = mi.run(TABLE_1, model, toy, pool=pool, registry=tmp_path / "other")
    assert again.id == clean.id
    pd.testing.assert_frame_equal(again.summary, clean.summary)


def test_another_number_type_is_no_change(tmp_path: Path) -> None:
    model = mi.load(TOY_MODEL)
    assert not model.to(torch.float64).changed()
    assert not model.to(torch.bfloat16).changed()
    model.hf.classifier.weight.data.mul_(2)
    assert model.to(torch.float32).changed() == ["classifier.weight", "number type (bfloat16 before)"]
    assert mi.load(TOY_MODEL, dtype="bfloat16").to(torch.float32).changed() == ["number type (bfloat16 before)"]


def test_a_wrong_family_row_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    hf = build("bert")
    wrong = FAMILIES["bert"]._replace(q="attention.self.key", k="attention.self.query", pooler_activation=torch.relu)
    model = HookedEncoder(hf, tokenizer("bert"), wrong)
    with pytest.raises(MechirError, match=r"differ from Hugging Face's by .* of the largest logit, more than 1e-04"):
        mi.run(TABLE_1, model, mi.collection(TOY), pool=Pool(limit_queries=1), registry=tmp_path)
    assert not (tmp_path / "runs").exists()


def certificate(**changes: Any) -> dict[str, Any]:
    return {"input": 0, "n_pairs": 8, "score": 0.0, "score_head_row": 0.0, "dtype": "float32"} | changes


def test_the_certificate_gates_at_its_bound() -> None:
    for dtype, bound in BOUNDS.items():
        refuse_unlike(certificate(score=bound, dtype=dtype), "m")
        with pytest.raises(MechirError, match=f"the bound of {dtype}"):
            refuse_unlike(certificate(score_head_row=float(np.nextafter(bound, 1)), dtype=dtype), "m")
    with pytest.raises(MechirError, match="differ from Hugging Face's by nan"):
        refuse_unlike(certificate(score=float("nan")), "m")
    with pytest.raises(MechirError, match="tokenizer reads 3 of 8 pairs otherwise than 'm' does here"):
        refuse_unlike(certificate(input=3), "m")


def test_the_certificate_sees_other_inputs(tiny: HookedEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = HookedEncoder.encode

    def typeless(self: HookedEncoder, *arguments: Any) -> Any:
        encoded = encode(self, *arguments)
        return type(encoded)(**(vars(encoded) | {"types": tuple(0 * types for types in encoded.types)}))

    monkeypatch.setattr(HookedEncoder, "encode", typeless)
    assert tiny.certify(PAIRS)["input"] == len(PAIRS)
    with pytest.raises(MechirError, match="reads 8 of 8 pairs otherwise"):
        provenance.certificate(mi.load(TOY_MODEL), mi.collection(TOY).pairs())


def test_a_run_of_the_old_rule_stays_readable_and_is_never_taken_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its record has the hash of files for a fingerprint, and nothing of how model and collection were read."""
    monkeypatch.chdir(tmp_path)
    model, toy, pool = mi.load(TOY_MODEL), mi.collection(TOY), Pool(limit_queries=1, per_grade=1)
    new = mi.run(TABLE_1, model, toy, pool=pool, registry="new")
    old = Path("mechir-registry") / "runs" / "0123456789abcdef"
    shutil.copytree(new.path, old)
    (old / "summary.parquet").write_bytes((new.path / "summary.parquet").read_bytes())
    record = new.record
    kept = {key: record[key] for key in ("asked", "model", "model_revision", "units", "pairs", "queries", "skipped",
                                         "truncated_documents", "versions", "python", "started", "commit")}  # fmt: skip
    identity = record["identity"] | {"model_fingerprint": "f" * 64}
    certificate = {key: value for key, value in record["certificate"].items() if key != "input"}
    (old / "run.json").write_text(json.dumps(kept | {"id": old.name, "identity": identity, "certificate": certificate}))
    cli.main(["show"])
    cli.main(["show", "0123"])
    out = capsys.readouterr().out
    assert "0123456789abcdef" in out and "doc<-query" in out and "word pieces" not in out
    again = mi.run(TABLE_1, model, toy, pool=pool)
    assert again.id == new.id != old.name and len(list(Path("mechir-registry/runs").iterdir())) == 2
    cli.main(["report"])
    assert (Path("mechir-registry") / "report.html").is_file()


def test_rounding_and_hooks_from_outside_are_refused(tmp_path: Path) -> None:
    model, toy = mi.load(TOY_MODEL), mi.collection(TOY)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(MechirError, match="autocast is on, which rounds on the way"),
    ):
        mi.run(TABLE_1, model, toy, registry=tmp_path)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *given: None)
    try:
        with pytest.raises(MechirError, match="Hooks were left in place at 'every module of torch'"):
            mi.run(TABLE_1, model, toy, registry=tmp_path)
    finally:
        handle.remove()
    refuse_altered(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, r"Hugging Face refuses '.*config.json' \(.*correct it, or download it again"),
        ({"hidden_act": "swiglu"}, r"Hugging Face refuses '.*config.json' \(KeyError: 'swiglu'"),
        ({"pad_token_id": 7000}, r"Hugging Face refuses"),
        ({"vocab_size": "many"}, r"Hugging Face refuses"),
    ],
)
def test_a_config_that_hugging_face_refuses_is_one_sentence(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit(copy, "config.json", **changes)
    with pytest.raises(MechirError, match=message) as raised:
        mi.load(copy)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_that_is_random_or_has_no_length_is_refused(
    checkpoints: Checkpoints, copy: Path, tmp_path: Path
) -> None:
    edit(copy, "tokenizer_config.json", model_max_length="16")
    with pytest.raises(MechirError, match="model_max_length is '16': write a number of word pieces"):
        mi.load(copy)
    backend = Tokenizer(
        models.BPE({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "ab": 6}, [("a", "b")], dropout=0.1)
    )
    folder = Path(shutil.copytree(checkpoints.path("roberta"), tmp_path / "random"))
    content = json.loads((folder / "tokenizer.json").read_text()) | {"model": json.loads(backend.to_str())["model"]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(MechirError, match="drops merges at random"):
        mi.load(folder)


@pytest.mark.parametrize("length", [0, -5, 999])
def test_a_length_that_a_call_asks_for_is_checked(tiny: HookedEncoder, length: int) -> None:
    with pytest.raises(MechirError, match=rf"max_length={length} is out of range: the model reads 1 to 64 word pieces"):
        tiny.score(PAIRS, max_length=length)


def test_no_length_is_taken_for_none(copy: Path) -> None:
    for length in (0, -1, 65):
        with pytest.raises(
            MechirError, match=rf"max_length={length} is out of range: the model reads 1 to 64 word pieces"
        ):
            mi.load(copy, max_length=length)
