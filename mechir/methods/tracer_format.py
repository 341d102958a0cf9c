"""circuit-tracer's graph format: a circuit as the JSON object that its pages and Neuronpedia draw.

It follows `frontend/graph_models.py` of circuit-tracer 0.5.0 (schema_version 1; its classes skip keys that they do not
know, and links are kept whole), what its pages read of it (`util-cg.js`), and the schema to which Neuronpedia holds
uploads. In their graphs nodes are features of transcoders at a token; here they are components, and the columns are
kinds of components, because the effect of an edge is a sum over positions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from mechir.circuits import Circuit, Edge, component, parse_edge
from mechir.errors import MechirError
from mechir.methods.saved_circuits import SavedCircuit, Shape, as_object, as_score, checked, filler, short
from mechir.sites import Head, Mlp, Resid, Score

LANES = ("embedding", "attention heads", "MLPs", "score")
"""The columns. With fewer than two, their page would drop every node as one that is active everywhere."""
KINDS = {Resid: "embedding", Head: "attention head", Mlp: "mlp", Score: "logit"}
"""The `feature_type` of each kind of node, in the order of the columns; the first and last are circuit-tracer's."""
Component = Resid | Head | Mlp | Score


def as_graph(saved: SavedCircuit, slug: str) -> dict[str, Any]:
    """The JSON object: `metadata`, `qParams`, `nodes` and `links`.

    Nodes are the components that edges of the circuit touch, the embedding and the score. A link joins two components
    and knows no q, k, v: its weight is the sum of the scores of its edges, right to first order, and a key of our own,
    `edges`, has each of them (null: not measured). Without any scores every weight is 1. Scores of edges outside the
    circuit have no place in a graph.

    Raises:
        MechirError: for scores without a circuit.
    """
    if saved.scores and not saved.circuit:
        raise MechirError("a graph holds the edges of a circuit, and there is none: give e.g. scores.circuit(50).")
    shape = saved.shape
    links: dict[tuple[str, str], dict[str, float | None]] = {}
    for edge in saved.circuit:
        links.setdefault(_ends(edge, shape), {})[str(edge)] = saved.scores.get(edge)
    empty = filler({edge: saved.scores[edge] for edge in saved.circuit if edge in saved.scores})
    touched: list[Component] = [component(end) for edge in saved.circuit for end in (edge.source, *edge.readers)]
    return {
        "metadata": {
            "slug": _plain(slug),
            "scan": _plain(shape.name),
            "transcoder_list": [],
            "prompt_tokens": list(LANES),
            "prompt": f"a circuit of {len(saved.circuit)} edges",
            "schema_version": 1,
            "info": {"generator": {"name": "mechir"}},
            "generation_settings": shape.sizes,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": sorted((_node(end, shape) for end in {*touched, Resid(0), Score()}), key=_in_order),
        "links": [
            {"source": source, "target": target, "weight": _weight(edges, empty), "edges": edges}
            for (source, target), edges in links.items()
        ],
    }


def from_graph(content: Mapping[str, Any]) -> SavedCircuit:
    """What a graph holds that `as_graph` wrote, also after circuit-tracer's page has saved it again.

    Raises:
        MechirError: for a graph of another tool, whose links have no `edges`: which input of a head one enters stands
            nowhere, and nodes are features of transcoders; for a link that was changed since it was written.
    """
    metadata, links = as_object(content["metadata"], "metadata"), content["links"]
    if not isinstance(links, list):
        raise MechirError(f"its links are no list but {short(links)}.")
    scores: dict[Edge, Any] = {}
    for link in links:
        for text, value in _edges_of(link).items():
            edge = _parse(text)
            if edge in scores:
                raise MechirError(f"it has the edge {edge} twice.")
            scores[edge] = value
    settings = as_object(metadata.get("generation_settings"), "generation_settings, where the model's sizes stand,")
    shape = Shape.parse(settings, str(metadata.get("scan", "")))
    saved = checked(Circuit(scores), scores, shape)
    for link in links:
        _refuse_changed(link, saved)
    return saved


def _edges_of(link: Any) -> dict[str, Any]:
    edges = link.get("edges") if isinstance(link, dict) else None
    if not isinstance(edges, dict) or not edges:
        raise MechirError(
            f"its link {short(link)} has no 'edges', which say what input of a head it enters: only graphs that "
            "save_circuit wrote can be read."
        )
    return edges


def _parse(text: str) -> Edge:
    if len(text) > 40:  # longer than any edge of a model
        raise MechirError(f"it has the edge {short(text)}: write h1.3->h8.1.q, mlp1->mlp3 or h8.1->score.")
    return parse_edge(text)


def _refuse_changed(link: dict[str, Any], saved: SavedCircuit) -> None:
    """Raises where a link's ends or weight are not those of its edges."""
    given = (link.get("source"), link.get("target"))
    ends = [_ends(_parse(text), saved.shape) for text in link["edges"]]
    scores = {text: as_score(text, value) for text, value in link["edges"].items()}
    if any(pair != given for pair in ends) or link.get("weight") != _weight(scores, filler(saved.scores)):
        raise MechirError(f"its link {short(link)} has not the ends or the weight of its edges: it was changed since.")


def _ends(edge: Edge, shape: Shape) -> tuple[str, str]:
    """The ids of the two nodes of an edge."""
    source, target = (_node(component(end), shape)["node_id"] for end in (edge.source, *edge.readers))
    return source, target


def _node(end: Component, shape: Shape) -> dict[str, Any]:
    """A component as a node; its id is layer, number and column, as theirs is layer, feature and position."""
    kind = KINDS[type(end)]
    column, number = list(KINDS).index(type(end)), end.head if isinstance(end, Head) else 0
    last = isinstance(end, Score)
    layer = str(end.layer) if isinstance(end, Head | Mlp) else str(shape.n_layers + 1) if last else "E"
    return {
        "node_id": f"{layer}_{number}_{column}",
        "feature": number,
        "layer": layer,
        "ctx_idx": column,
        "feature_type": kind,
        "token_prob": float(last),
        "is_target_logit": last,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{layer}_{number}-{column}",
        "clerp": 'Output "score" (p=1.000)' if last else str(end),  # their page fails on a logit's label without (p=
        "influence": None,
        "activation": None,
    }


def _in_order(node: dict[str, Any]) -> tuple[int, int, int]:
    return -1 if node["layer"] == "E" else int(node["layer"]), node["ctx_idx"], node["feature"]


def _weight(edges: Mapping[str, float | None], empty: float) -> float:
    scores = [value for value in edges.values() if value is not None]
    return math.fsum(scores) if scores else empty


def _plain(text: str) -> str:
    """A name that can stand in an address and in a page, where tools put it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "mechir"
