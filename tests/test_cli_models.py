"""How a model is read, said on the command line: which label is relevance, how much is read, and what is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mechir as mi
from tests.models import TOY, TOY_MODEL, build, tokenizer
from tests.test_cli import call

SMALL = ("--limit-queries", "1", "--per-grade", "1")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def entailment(tmp_path: Path) -> Path:
    """A model of two labels, the first of which is relevance."""
    model = build("bert", labels=2)
    model.config.id2label, model.config.label2id = {0: "yes", 1: "no"}, {"yes": 0, "no": 1}
    model.save_pretrained(tmp_path / "model")
    tokenizer("bert").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def scores(file: Path) -> dict[tuple[str, str], float]:
    lines = [line.split() for line in file.read_text().splitlines()]
    return {(line[0], line[2]): float(line[4]) for line in lines}


def test_named_labels_are_asked_for_by_every_command(capsys: pytest.CaptureFixture[str], entailment: Path) -> None:
    for command in (("run", "vast2025/direction_ablation", *SMALL), ("score", "--out", "x.run")):
        code, out, err = call(capsys, *command, "--model", str(entailment))
        assert (code, out) == (2, "")
        assert err.splitlines()[-1].startswith("mechir: The model has 2 labels and no score until you say which one")
        assert "--relevant-label one of 0 ('yes'), 1 ('no')." in err
    assert not Path("mechir-registry").exists() and not Path("x.run").exists()
    for label in ("0", "yes"):
        code, _, _ = call(capsys, "score", "--out", "x.run", "--model", str(entailment), "--relevant-label", label)
        expected = mi.load(entailment, relevant_label=0)
        pairs = mi.collection(TOY).pairs()
        wanted = {(p.query_id, p.doc_id): s for p, s in zip(pairs, expected.score(pairs).tolist(), strict=True)}
        assert code == 0 and scores(Path("x.run")) == pytest.approx(wanted, abs=2e-5)
    code, _, _ = call(
        capsys, "run", "vast2025/direction_ablation", *SMALL, "--model", str(entailment), "--relevant-label", "no"
    )
    (run,) = Path("mechir-registry/runs").iterdir()
    assert (code, json.loads((run / "run.json").read_text())["identity"]["relevant_label"]) == (0, 1)
    code, _, err = call(capsys, "score", "--out", "y.run", "--model", str(entailment), "--relevant-label", "maybe")
    assert (code, err) == (2, "mechir: --relevant-label 'maybe' is no label: the model has yes, no.\n")


def test_a_maximum_length_is_followed_recorded_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "run", "vast2025/direction_ablation", *SMALL, "--max-length", "24")
    (run,) = Path("mechir-registry/runs").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert (code, record["given"]["max_length"], record["reading"]["max_length"]) == (0, 24, 24)
    assert record["truncated_documents"] > 0
    assert "reads 24 word pieces (asked for)" in out
    assert record["identity"]["model_fingerprint"] == mi.load(TOY_MODEL, max_length=24).fingerprint
    code, shown, _ = call(capsys, "show", run.name)
    assert shown == out and "score: the logit of the only label" in shown
    code, _, _ = call(capsys, "score", "--out", "short.run", "--max-length", "24")
    pairs = mi.collection(TOY).pairs()
    wanted = mi.load(TOY_MODEL).score(pairs, max_length=24).tolist()
    expected = {(p.query_id, p.doc_id): s for p, s in zip(pairs, wanted, strict=True)}
    assert scores(Path("short.run")) == pytest.approx(expected, abs=2e-5)
    code, _, err = call(capsys, "run", "vast2025/direction_ablation", *SMALL, "--max-length", "5000")
    assert code == 2 and "--max-length 5000 is out of range: the model reads 1 to" in err
    code, _, err = call(capsys, "run", "lu2025/head_to_score", *SMALL, "--max-length", "24", "--filler", "a")
    assert code == 0, err


def test_a_query_that_a_length_leaves_no_room_for_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "score", "--out", "short.run", "--max-length", "9")
    assert (code, out) == (2, "") and "queries are never truncated" in err
    assert not Path("short.run").exists()
