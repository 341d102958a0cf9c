"""Files of circuits that are damaged, or no such files: each is refused in one sentence."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mechir.circuits import Circuit, parse_edge
from mechir.errors import MechirError
from mechir.methods.circuit_files import read, write
from mechir.methods.saved_circuits import SavedCircuit, Shape
from tests.test_circuit_files import SHAPE, SIZES, strict

GOOD = {
    "cfg": {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8},
    "nodes": {"input": {"in_graph": True}, "a1.h1": True, "logits": {"in_graph": True}},
    "edges": {"input->logits": {"score": 1, "in_graph": True}},
}
LIMIT = "is no size of a model: write a whole number from 1 to"
NAMES = "which is none: write input->a0.h1<q>, a0.h1->m0 or m0->logits."


def with_edge(name: str, **info: Any) -> dict[str, Any]:
    return {"edges": {name: {"score": 0.5, "in_graph": True} | info}}


def with_node(name: str, **info: Any) -> dict[str, Any]:
    return {"nodes": {name: {"in_graph": True} | info}}


WRONG_MIB = {
    "parallel": (
        {"cfg": GOOD["cfg"] | {"parallel_attn_mlp": True}},
        "its cfg has parallel_attn_mlp=True, and in the models here an MLP reads what the attention of its layer writes "
        "(false).",
    ),
    "no parallel": (
        {"cfg": {"n_layers": 2}},
        "its cfg has parallel_attn_mlp=None, and in the models here an MLP reads what the attention of its layer writes "
        "(false).",
    ),
    "no heads": ({"cfg": GOOD["cfg"] | {"n_heads": None}}, f"n_heads=None {LIMIT} 1000."),
    "half a layer": ({"cfg": GOOD["cfg"] | {"n_layers": 2.0}}, f"n_layers=2.0 {LIMIT} 1000."),
    "yes layers": ({"cfg": GOOD["cfg"] | {"n_layers": True}}, f"n_layers=True {LIMIT} 1000."),
    "no layers": ({"cfg": GOOD["cfg"] | {"n_layers": 0}}, f"n_layers=0 {LIMIT} 1000."),
    "a million layers": ({"cfg": GOOD["cfg"] | {"n_layers": 10**9}}, f"n_layers=1000000000 {LIMIT} 1000."),
    "cfg": ({"cfg": [1]}, "cfg is no JSON object but [1]."),
    "nodes": ({"nodes": []}, "nodes is no JSON object but []."),
    "edges": ({"edges": None}, "edges is no JSON object but None."),
    "node": (with_node("a9.h0"), f"its node 'a9.h0' is none of a model of {SIZES}."),
    "node's head": (with_node("a1.h2"), f"its node 'a1.h2' is none of a model of {SIZES}."),
    "node's name": (with_node("x" * 99), f"its node '{'x' * 56}... is none of a model of {SIZES}."),
    "node's score": (
        with_node("m0", score=0.5),
        "it scores nodes or neurons (m0), and a circuit here is a set of whole edges.",
    ),
    "neurons": (
        with_node("m0", neurons=[True]),
        "it scores nodes or neurons (m0), and a circuit here is a set of whole edges.",
    ),
    "layer": (with_edge("a9.h0->logits"), f"h9.0->score is no edge of a model of {SIZES}."),
    "head": (with_edge("a0.h0->a1.h2<q>"), f"h0.0->h1.2.q is no edge of a model of {SIZES}."),
    "mlp": (with_edge("a0.h0->m2"), f"h0.0->mlp2 is no edge of a model of {SIZES}."),
    "backwards": (with_edge("a1.h1->a0.h0<q>"), "h1.1->h0.0.q leads backwards: h1.1 writes after h0.0.q reads."),
    "to itself": (with_edge("m0->m0"), "mlp0->mlp0 leads backwards: mlp0 writes after mlp0 reads."),
    "side by side": (with_edge("a0.h0->a0.h1<k>"), "h0.0->h0.1.k leads backwards: h0.0 writes after h0.1.k reads."),
    **{
        f"name {name}": (with_edge(name), f"it has the edge {name!r}, {NAMES}")
        for name in ("", "m0", "a0.h1->a1.h0", "a0.h1->m0<q>", "input->input", "logits->m0", "a0.h1<q>->m0", "m00->m1",
                     "m0->logits<v>", "a0.h1->a1.h0<z>", "h0.1->mlp0", "input->m0->logits", "m٣->logits")
    },
    "a long number": (with_edge(f"m{'1' * 9999}->logits"), f"it has the edge 'm{'1' * 55}..., {NAMES}"),
    "edge": ({"edges": {"m0->logits": 0.5}}, "the edge m0->logits is no JSON object but 0.5."),
    "in_graph": (with_edge("m0->logits", in_graph=1), "the edge m0->logits has in_graph=1: write true or false."),
    "no in_graph": (
        {"edges": {"m0->logits": {"score": 0.5}}},
        "the edge m0->logits has in_graph=None: write true or false.",
    ),
    **{
        f"score {value}": (
            with_edge("m0->logits", score=value),
            f"the score of mlp0->score is {text}, which is no finite number of 32 bits.",
        )
        for value, text in (("0.5", "'0.5'"), (True, "True"), (1e39, "1e+39"), (float("-inf"), "-inf"), ([], "[]"),
                            (10**400, f"1{'0' * 56}..."))
    },
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_MIB)
def test_a_damaged_file_of_mib_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    change, message = WRONG_MIB[case]
    refused(tmp_path / "bad.json", json.dumps(GOOD | change), message)


def test_what_is_harmless_in_a_file_of_mib_is_read(tmp_path: Path) -> None:
    file = tmp_path / "good.json"
    for change in ({}, with_node("m0", score=float("nan")), {"more": [1]}, with_edge("input->logits", score=1, more=2)):
        file.write_text(json.dumps(GOOD | change))
        assert read(file) == (Circuit(["resid0->score"]), {parse_edge("resid0->score"): 1.0}, Shape(2, 2, 8))
    for change in ({"score": float("nan")}, {"score": None}, {"measured": False}):
        file.write_text(json.dumps(GOOD | with_edge("input->logits", **change)))
        assert read(file).scores == {}


def graph(**changes: Any) -> dict[str, Any]:
    """A graph as it is written, with some of its parts replaced."""
    with tempfile.TemporaryDirectory() as folder:
        circuit = Circuit(["resid0->h0.1.k", "resid0->h0.1.v", "h0.1->score"])
        saved = SavedCircuit(circuit, {parse_edge("h0.1->score"): 0.5}, SHAPE)
        content = strict(write(Path(folder) / "g.json", saved, format="circuit-tracer"))
    return content | changes


def links(**changes: Any) -> dict[str, Any]:
    content = graph()
    content["links"][1] |= changes
    return content


CHANGED = "has not the ends or the weight of its edges: it was changed since."
WRONG_GRAPH = {
    "no sizes": (  # as after their models have read and written it
        graph(metadata={"slug": "g", "scan": "tiny"}),
        "generation_settings, where the model's sizes stand, is no JSON object but None.",
    ),
    "metadata": (graph(metadata="<script>"), "metadata is no JSON object but '<script>'."),
    "size": (graph(metadata={"generation_settings": {"n_layers": "2"}}), f"n_layers='2' {LIMIT} 1000."),
    "links": (graph(links={}), "its links are no list but {}."),
    "link": (
        graph(links=["a"]),
        "its link 'a' has no 'edges', which say what input of a head it enters: only graphs that save_circuit wrote can "
        "be read.",
    ),
    "weight": (links(weight=0.25), f"its link {{'source': '0_1_1', 'target': '3_0_3', 'weight': 0.25, 'e... {CHANGED}"),
    "source": (
        links(source=["E"]),
        f"its link {{'source': ['E'], 'target': '3_0_3', 'weight': 0.5, 'edge... {CHANGED}",
    ),
    "target": (
        links(target="0_1_1"),
        f"its link {{'source': '0_1_1', 'target': '0_1_1', 'weight': 0.5, 'ed... {CHANGED}",
    ),
    "edge": (links(edges={"h0.1": 1}), "Cannot read 'h0.1' as an edge: write h1.3->h8.1.q, mlp1->mlp3 or h8.1->score."),
    "long edge": (
        links(edges={"h" * 99: 1}),
        f"it has the edge '{'h' * 56}...: write h1.3->h8.1.q, mlp1->mlp3 or h8.1->score.",
    ),
    "several readers": (
        links(edges={"h0.1->h1.0.k+h1.1.k": 1}),
        "h0.1->h1.0.k+h1.1.k does not lead from resid0, a head or an MLP to one input, as an edge in a file does.",
    ),
    "twice": (links(edges={"resid0->h0.1.k": 1}), "it has the edge resid0->h0.1.k twice."),
    "beyond": (links(edges={"h7.1->score": 1}), f"h7.1->score is no edge of a model of {SIZES}."),
    "score": (
        links(edges={"h0.1->score": "much"}),
        "the score of h0.1->score is 'much', which is no finite number of 32 bits.",
    ),
}


@pytest.mark.parametrize("case", WRONG_GRAPH)
def test_a_damaged_graph_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    content, message = WRONG_GRAPH[case]
    refused(tmp_path / "bad.json", json.dumps(content), message)


NEITHER = "it is in neither format: MIB's has cfg, nodes and edges, circuit-tracer's has metadata, nodes and links."
WRONG_FILE = {
    "empty": ("", "it is no JSON (Expecting value: line 1 column 1 (char 0))."),
    "half": ('{"cfg": {', "it is no JSON (Expecting property name enclosed in double quotes: line 1 column 10 (char 9))."),
    "list": ("[]", NEITHER),
    "number": ("1", NEITHER),
    "other": ('{"nodes": [], "edges": []}', NEITHER),
    "nested": ("[" * 200_000, "it is nested too deeply."),
    "nested inside": ('{"cfg":' * 200_000, "it is nested too deeply."),
    "twice": ('{"cfg": {}, "cfg": {}}', "it has 'cfg' twice in one object."),
    "digits": (
        "1" * 5000,
        "it is no JSON (Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits; use "
        "sys.set_int_max_str_digits() to increase the limit).",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FILE)
def test_what_is_no_file_of_a_circuit_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    text, message = WRONG_FILE[case]
    refused(tmp_path / "bad.json", text, message)


def refused(file: Path, text: str, message: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MechirError) as error:
        read(file)
    assert str(error.value) == f"Cannot read '{file}' as a circuit: {message}"
