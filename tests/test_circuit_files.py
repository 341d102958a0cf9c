"""Circuits in MIB's and circuit-tracer's formats: what is written is read, by those tools' rules, and nothing else is."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mechir as mi
from mechir import planted
from mechir.circuits import PORTS, Circuit, Edge, parse_edge
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods import circuit_files
from mechir.methods.circuit_files import read, write
from mechir.methods.edges import edges
from mechir.methods.saved_circuits import FLOAT32, SavedCircuit, Shape

DATA = Path(__file__).parent / "data" / "circuits"
MODEL = planted.bm25(c=3.0)
PAIRS = planted.pairs(MODEL, n=24)
TRUTH = planted.truth(MODEL, "tf").edges
SHAPE = Shape(2, 2, 8, "tiny")
SIZES = "2 layers with 2 heads and d_model 8"


def every_edge(shape: Shape) -> Iterator[tuple[Edge, str]]:
    """The edges of a model with their names in MIB's format, by EAP-IG's definition: who reads what is written so far."""
    stream = [("resid0", "input")]
    for layer in range(shape.n_layers):
        heads = [(f"h{layer}.{head}", f"a{layer}.h{head}") for head in range(shape.n_heads)]
        for (ours, theirs), (head, other), port in ((s, h, p) for s in stream for h in heads for p in PORTS):
            yield Edge(ours, f"{head}.{port}"), f"{theirs}->{other}<{port}>"
        stream += heads
        for ours, theirs in stream:
            yield Edge(ours, f"mlp{layer}"), f"{theirs}->m{layer}"
        stream.append((f"mlp{layer}", f"m{layer}"))
    for ours, theirs in stream:
        yield Edge(ours, "score"), f"{theirs}->logits"


SIZE = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 999))
COLUMN = st.integers(0, 10_000)
SCORES = st.dictionaries(COLUMN, st.one_of(st.floats(-FLOAT32, FLOAT32), st.just(float("nan"))))


def saved_of(size: tuple[int, int, int], members: set[int], scores: dict[int, float]) -> SavedCircuit:
    """A circuit of a small model, some of whose edges are scored; NaN: not measured."""
    shape = Shape(*size, "tiny")
    listed = [edge for edge, _ in every_edge(shape)]
    values = {listed[column % len(listed)]: score for column, score in scores.items()}
    return SavedCircuit(Circuit(listed[column % len(listed)] for column in members), values, shape)


def measured(saved: SavedCircuit) -> dict[Edge, float]:
    return {edge: score for edge, score in saved.scores.items() if score == score}


def strict(file: Path) -> Any:
    """The JSON of a file, without the NaN and Infinity that Python allows."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(file.read_text(encoding="ascii"), parse_constant=refuse)


@given(SIZE, st.sets(COLUMN), SCORES)
def test_mib_keeps_circuit_and_scores_exactly(size: Any, members: set[int], scores: dict[int, float]) -> None:
    saved = saved_of(size, members, scores)
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / "a.json", saved)
        content, again = strict(file), read(file)
        assert again == (saved.circuit, measured(saved), saved.shape)
        turned = SavedCircuit(Circuit(reversed(list(saved.circuit))), dict(reversed(saved.scores.items())), saved.shape)
        assert write(Path(folder) / "b.json", turned).read_bytes() == file.read_bytes()
    names = {name: edge for edge, name in every_edge(saved.shape)}
    assert content["edges"].keys() <= names.keys()
    for name, info in content["edges"].items():  # what EAP-IG assigns
        assert isinstance(info["score"], float) and info["in_graph"] is (names[name] in saved.circuit)
    assert len(content["nodes"]) == 2 + saved.shape.n_layers * (saved.shape.n_heads + 1)


@given(SIZE, st.sets(COLUMN), SCORES)
def test_a_graph_keeps_the_circuit_and_its_scores(size: Any, members: set[int], scores: dict[int, float]) -> None:
    saved = saved_of(size, members, scores)
    inside = {edge: score for edge, score in measured(saved).items() if edge in saved.circuit}
    saved = saved if saved.circuit else saved._replace(scores={})
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / "a.json", saved, format="circuit-tracer")
        content = strict(file)
        assert read(file) == (saved.circuit, inside, saved.shape)
        content["qParams"] |= {"pinnedIds": ["E_0_0"], "clickedId": "E_0_0"}  # as their page saves it
        file.write_text(json.dumps(content, indent=2))
        assert read(file) == (saved.circuit, inside, saved.shape) and read(file).shape.name == "tiny"
    refuse_as_theirs_would(content)


def refuse_as_theirs_would(content: dict[str, Any]) -> None:
    """What circuit-tracer's models, Neuronpedia's schema and the page's code ask of a graph."""
    texts = {"metadata": ("slug", "scan", "prompt"), "qParams": ("linkType", "clickedId", "sg_pos")}
    assert all(isinstance(content[part][key], str) for part, keys in texts.items() for key in keys)
    assert len(content["metadata"]["prompt_tokens"]) >= 2 and content["metadata"]["transcoder_list"] == []
    assert "node_threshold" not in content["metadata"]  # a number, or absent
    kinds = {
        "node_id": str,
        "feature": int,
        "layer": str,
        "ctx_idx": int,
        "feature_type": str,
        "jsNodeId": str,
        "clerp": str,
    }
    for node in content["nodes"]:
        assert all(type(node[key]) is kind for key, kind in kinds.items())
        assert 0 <= node["ctx_idx"] < len(content["metadata"]["prompt_tokens"])
        assert node["feature_type"] != "logit" or "(p=" in node["clerp"]
    ids = [node["node_id"] for node in content["nodes"]]
    features = {(node["layer"], node["feature"], node["ctx_idx"]) for node in content["nodes"]}
    assert len(set(ids)) == len(features) == len(ids)
    ends = [(link["source"], link["target"]) for link in content["links"]]
    assert len(set(ends)) == len(ends) and {end for pair in ends for end in pair} <= set(ids)
    assert all(isinstance(link["weight"], float) for link in content["links"])


def test_the_files_of_a_small_circuit_by_hand(tmp_path: Path) -> None:
    circuit = Circuit(["resid0->h0.1.k", "resid0->h0.1.v", "h0.1->mlp0", "mlp0->score", "h0.0->score"])
    scores = {parse_edge("resid0->h0.1.k"): 0.5, parse_edge("resid0->h0.1.v"): -0.125, parse_edge("mlp0->score"): 0.25}
    saved = SavedCircuit(circuit, scores | {parse_edge("resid0->score"): 2.0}, Shape(1, 2, 8, "a/b <i>"))
    assert strict(write(tmp_path / "m.json", saved)) == {
        "cfg": {"n_layers": 1, "n_heads": 2, "d_model": 8, "parallel_attn_mlp": False},
        "nodes": {
            "input": {"in_graph": True},
            "a0.h0": {"in_graph": False},  # nothing leads into it
            "a0.h1": {"in_graph": True},
            "m0": {"in_graph": True},
            "logits": {"in_graph": True},
        },
        "edges": {
            "input->a0.h1<k>": {"score": 0.5, "in_graph": True},
            "input->a0.h1<v>": {"score": -0.125, "in_graph": True},
            "input->logits": {"score": 2.0, "in_graph": False},
            "a0.h0->logits": {"score": 0.0, "in_graph": True, "measured": False},
            "a0.h1->m0": {"score": 0.0, "in_graph": True, "measured": False},
            "m0->logits": {"score": 0.25, "in_graph": True},
        },
    }
    graph = strict(write(tmp_path / "the <b>graph.json", saved, format="circuit-tracer"))
    assert [(node["node_id"], node["feature_type"], node["clerp"]) for node in graph["nodes"]] == [
        ("E_0_0", "embedding", "resid0"),
        ("0_0_1", "attention head", "h0.0"),
        ("0_1_1", "attention head", "h0.1"),
        ("0_0_2", "mlp", "mlp0"),
        ("2_0_3", "logit", 'Output "score" (p=1.000)'),
    ]
    assert graph["links"] == [
        {
            "source": "E_0_0",
            "target": "0_1_1",
            "weight": 0.375,
            "edges": {"resid0->h0.1.k": 0.5, "resid0->h0.1.v": -0.125},
        },
        {"source": "0_0_1", "target": "2_0_3", "weight": 0.0, "edges": {"h0.0->score": None}},
        {"source": "0_1_1", "target": "0_0_2", "weight": 0.0, "edges": {"h0.1->mlp0": None}},
        {"source": "0_0_2", "target": "2_0_3", "weight": 0.25, "edges": {"mlp0->score": 0.25}},
    ]
    assert (graph["metadata"]["slug"], graph["metadata"]["scan"]) == ("the-b-graph", "a-b-i")
    assert graph["metadata"]["prompt"] == "a circuit of 5 edges"


def test_edges_without_any_score_rank_above_the_rest(tmp_path: Path) -> None:
    saved = SavedCircuit(Circuit(["resid0->score"]), {}, SHAPE)
    assert strict(write(tmp_path / "m.json", saved))["edges"] == {
        "input->logits": {"score": 1.0, "in_graph": True, "measured": False}
    }
    assert strict(write(tmp_path / "g.json", saved, format="circuit-tracer"))["links"][0]["weight"] == 1.0
    assert read(tmp_path / "m.json") == read(tmp_path / "g.json") == saved


def test_a_file_laid_out_by_eap_ig_is_read() -> None:
    saved = read(DATA / "eap_ig.json")
    assert saved.circuit == Circuit(["resid0->h0.1.v", "h0.1->mlp0", "h0.1->score", "mlp0->score"])
    assert saved.shape == Shape(1, 2, 8)
    assert set(saved.scores) == {edge for edge, _ in every_edge(Shape(1, 2, 8))}
    assert [saved.scores[parse_edge(edge)] for edge in ("resid0->h0.1.v", "h0.1->mlp0", "resid0->h0.0.q")] == [
        0.5,
        -0.25,
        0.0,
    ]


def test_a_graph_of_circuit_tracer_itself_is_refused() -> None:
    with pytest.raises(MechirError) as error:
        read(DATA / "circuit_tracer.json")
    assert str(error.value) == (
        f"Cannot read '{DATA / 'circuit_tracer.json'}' as a circuit: its link {{'source': 'E_11_0', 'target': '0_7_1', "
        "'weight': 1.5} has no 'edges', which say what input of a head it enters: only graphs that save_circuit wrote "
        "can be read."
    )


@pytest.mark.parametrize("format", circuit_files.FORMATS)
def test_the_planted_circuit_goes_to_a_file_and_back(format: str, tmp_path: Path) -> None:
    scores = edges(MODEL, PAIRS)
    file = mi.save_circuit(tmp_path / "tf.json", MODEL, TRUTH, scores, format=format)
    circuit, effects, shape = mi.load_circuit(file, MODEL)
    estimates = dict(zip(scores.graph.edges, scores.estimate, strict=True))
    assert circuit == TRUTH and shape == Shape.of(MODEL)
    assert effects == (estimates if format == "mib" else {edge: estimates[edge] for edge in TRUTH})
    other = write(tmp_path / "other.json", mi.load_circuit(file, MODEL), format=format)
    assert other.read_text() == file.read_text().replace('"slug": "tf"', '"slug": "other"')


def test_scores_alone_and_edges_that_were_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    scores = edges(MODEL, PAIRS, method="exact", only=list(TRUTH))
    file = mi.save_circuit(tmp_path / "scores.json", MODEL, scores=scores)
    circuit, effects, _ = mi.load_circuit(file, MODEL)
    assert circuit == Circuit() and set(effects) == set(TRUTH)
    again = mi.save_circuit(tmp_path / "again.json", MODEL, scores=effects)
    assert mi.load_circuit(again, MODEL).scores == effects
    for wrong, message in (({5: 0.5}, "scores= has 5, which is no edge"), (5, "scores= was given a value of type int")):
        with pytest.raises(MechirError, match=message):
            mi.save_circuit(again, MODEL, scores=wrong)
    assert np.isnan(scores.estimate).sum() == len(scores) - len(TRUTH) and strict(file)
    listed = mi.save_circuit(tmp_path / "listed.json", MODEL, ["h1.2->mlp1", parse_edge("h3.1->score")])
    assert list(map(str, mi.load_circuit(listed, MODEL).circuit)) == ["h1.2->mlp1", "h3.1->score"]
    assert mi.load_circuit(mi.save_circuit(tmp_path / "none.json", MODEL, Circuit()), MODEL).circuit == Circuit()


def test_what_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MechirError, match=r"^Cannot read '.*none.json' \(No such file or directory\)\.$"):
        read(tmp_path / "none.json")
    with pytest.raises(MechirError, match=r"^Cannot read '.*' as a circuit: it is no file\.$"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with pytest.raises(MechirError, match=r"^Cannot read '.*pipe' as a circuit: it is no file\.$"):
        read(tmp_path / "pipe")
    (tmp_path / "bytes.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(
        MechirError, match=r"^Cannot read '.*' as a circuit: it is no JSON \('utf-8' codec can't decode .*\)\.$"
    ):
        read(tmp_path / "bytes.json")
    monkeypatch.setattr(circuit_files, "LARGEST", 1024)
    with pytest.raises(MechirError, match=r"^Cannot read '.*' as a circuit: it has more than 0 MB\.$"):
        read(DATA / "circuit_tracer.json")


@pytest.mark.parametrize(
    ("saved", "format", "message"),
    [
        (SavedCircuit(TRUTH, {}, SHAPE), "mib", f"resid0->h1.2.k is no edge of a model of {SIZES}."),
        (SavedCircuit(Circuit("h1.0->h0.1.q"), {}, SHAPE), "mib", "h1.0->h0.1.q leads backwards: h1.0 writes after h0.1.q reads."),
        (
            SavedCircuit(Circuit("n1.5->score"), {}, SHAPE), "mib",
            "n1.5->score does not lead from resid0, a head or an MLP to one input, as an edge in a file does.",
        ),
        (
            SavedCircuit(Circuit("resid1->score"), {}, SHAPE), "circuit-tracer",
            "resid1->score does not lead from resid0, a head or an MLP to one input, as an edge in a file does.",
        ),
        (
            SavedCircuit(Circuit(), {parse_edge("resid0->score"): float("inf")}, SHAPE), "mib",
            "the score of resid0->score is inf, which is no finite number of 32 bits.",
        ),
        (
            SavedCircuit(Circuit(), {parse_edge("resid0->score"): 1.0}, SHAPE), "circuit-tracer",
            "a graph holds the edges of a circuit, and there is none: give e.g. scores.circuit(50).",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_and_leaves_the_old_file(
    saved: SavedCircuit, format: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "old.json"
    file.write_text("old")
    with pytest.raises(MechirError) as error:
        write(file, saved, format=format)
    assert str(error.value) == f"Cannot write '{file}': {message}"
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_files_and_formats_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(MechirError, match=r"^Unknown format='acdc': write 'mib' or 'circuit-tracer'\.$"):
        mi.save_circuit(tmp_path / "a.json", MODEL, TRUTH, format="acdc")
    with pytest.raises(
        MechirError, match=r"^Cannot write '.*a.json' \(No such file or directory\): give another file to"
    ):
        mi.save_circuit(tmp_path / "none" / "a.json", MODEL, TRUTH)
    with pytest.raises(MechirError, match=r"^Cannot write '.*' \(Is a directory\): give another file to write\.$"):
        mi.save_circuit(tmp_path, MODEL, TRUTH)
    with pytest.raises(MechirError, match=r"^There is nothing to save: give a circuit, scores of edges, or both\.$"):
        mi.save_circuit(tmp_path / "a.json", MODEL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", [None, 5, b"x", "", "a\0b"])
def test_what_names_no_file_is_refused(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    for call in (lambda: mi.save_circuit(file, MODEL, TRUTH), lambda: mi.load_circuit(file, MODEL)):
        with pytest.raises(MechirError) as error:
            call()
        assert str(error.value) == f"file={file!r} is no name of a file: write e.g. 'tf.json'."


def test_a_circuit_of_another_model_is_refused(tmp_path: Path, tiny: HookedEncoder) -> None:
    file = mi.save_circuit(tmp_path / "tf.json", MODEL, TRUTH)
    with pytest.raises(MechirError) as error:
        mi.load_circuit(file, tiny)
    sizes, smaller = Shape.of(MODEL), Shape.of(tiny)
    assert str(error.value) == (
        f"'{file}' is a circuit of a model of {sizes}, and '{smaller.name}' has {smaller}: give the model that it was found in."
    )
    scores = edges(MODEL, PAIRS[:2])
    with pytest.raises(MechirError) as error:
        mi.save_circuit(file, tiny, scores=scores)
    assert str(error.value) == (
        f"The scores are of a model of 4 layers, and '{smaller.name}' has {smaller}: give the model that they belong to."
    )
    for value in (scores, mi.load_circuit(file, MODEL), 3, [3]):
        with pytest.raises(MechirError) as error:
            mi.save_circuit(file, MODEL, value)
        name = type(value).__name__
        assert str(error.value) == f"circuit= was given a value of type {name}: write a Circuit, or edges."
