"""MIB's edge format: the circuit and the scores of all edges as the JSON object that EAP-IG reads and writes.

The benchmark MIB (Mueller et al. 2025) uses `Graph.to_json` and `Graph.from_json` of EAP-IG; this follows
`src/eap/graph.py` of hannamw/EAP-IG at commit 4fad6c6. There resid0 is `input`, h1.2 is `a1.h2`, mlp1 is `m1` and the
score is `logits`; h1.2->h3.1.v is `a1.h2->a3.h1<v>`. The edges are those of a post-LN encoder, but there a component
reads a plain sum of what others wrote, and here LayerNorms stand between: EAP-IG can read a circuit of an encoder, and
not run it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mechir.circuits import PORTS, Circuit, Edge, Reader, component
from mechir.errors import MechirError
from mechir.methods.edge_graph import Sender
from mechir.methods.saved_circuits import SavedCircuit, Shape, as_object, as_score, checked, filler, shape_has, short
from mechir.sites import Head, Mlp, Resid, Score

_N = "(0|[1-9][0-9]{0,3})"
_NODE = re.compile(rf"(input|logits)|a{_N}\.h{_N}|m{_N}")
_EDGE = re.compile(rf"([^<>]*)->([^<>]*)(?:<([{''.join(PORTS)}])>)?")


def as_mib(saved: SavedCircuit) -> dict[str, Any]:
    """The JSON object: `cfg`, `nodes` and `edges`.

    Edges stand there that are in the circuit or have a score; the tools take any other for one outside, with score 0.
    An edge of the circuit without a score is marked `"measured": false`, a key of our own that they skip, and has
    `filler` for the score that they require. As after their `prune`, a node is in the graph if edges of the circuit
    lead into it and out of it.
    """
    shape, members = saved.shape, saved.circuit.edges
    fed, read = {component(edge.readers[0]) for edge in members} | {Resid(0)}, {edge.source for edge in members}
    nodes: list[Sender] = [Resid(0)]
    for layer in range(shape.n_layers):
        nodes += [*(Head(layer, head) for head in range(shape.n_heads)), Mlp(layer)]
    edges: dict[str, dict[str, Any]] = {}
    for edge in Circuit([*members, *saved.scores]):
        score = saved.scores.get(edge, filler(saved.scores))
        edges[_edge_name(edge)] = {"score": score, "in_graph": edge in members}
        if edge not in saved.scores:
            edges[_edge_name(edge)]["measured"] = False
    return {
        "cfg": shape.sizes | {"parallel_attn_mlp": False},
        "nodes": {_node_name(node): {"in_graph": node in fed and node in read} for node in nodes}
        | {"logits": {"in_graph": True}},
        "edges": edges,
    }


def from_mib(content: Mapping[str, Any]) -> SavedCircuit:
    """What such an object holds; a score of NaN, which Python's JSON allows, is none.

    The nodes' own `in_graph` decides nothing: the tools derive it from the edges.

    Raises:
        MechirError: for a model whose MLPs run beside its attention, scores of nodes or neurons, an unknown name, an
            edge that the shape lacks or that leads backwards, a score that is no number.
    """
    cfg, nodes, edges = (as_object(content[key], key) for key in ("cfg", "nodes", "edges"))
    parallel = cfg.get("parallel_attn_mlp")
    if parallel is not False:
        raise MechirError(
            f"its cfg has parallel_attn_mlp={short(parallel)}, and in the models here an MLP reads what the attention "
            "of its layer writes (false)."
        )
    shape = Shape.parse(cfg)
    for name, info in nodes.items():
        _refuse_node(name, info, shape)
    inside: list[Edge] = []
    scores: dict[Edge, Any] = {}
    for name, info in edges.items():
        edge = _parse_edge(name)
        entry = as_object(info, f"the edge {name}")
        member = entry.get("in_graph")
        if not isinstance(member, bool):
            raise MechirError(f"the edge {name} has in_graph={short(member)}: write true or false.")
        if member:
            inside.append(edge)
        scores[edge] = None if entry.get("measured") is False else entry.get("score")
    return checked(Circuit(inside), scores, shape)


def _refuse_node(name: str, info: Any, shape: Shape) -> None:
    node = _parse_node(name)
    if node is None or not shape_has(shape, node):
        raise MechirError(f"its node {short(name)} is none of a model of {shape}.")
    score = info.get("score") if isinstance(info, dict) else None
    if isinstance(info, dict) and ("neurons" in info or as_score(f"the node {name}", score) is not None):
        raise MechirError(f"it scores nodes or neurons ({name}), and a circuit here is a set of whole edges.")


def _node_name(end: Sender | Reader) -> str:
    if isinstance(end, Resid | Score):
        return "input" if isinstance(end, Resid) else "logits"
    return f"a{end.layer}.h{end.head}" if isinstance(end, Head) else f"m{end.layer}"


def _edge_name(edge: Edge) -> str:
    (reader,) = edge.readers
    port = f"<{reader.part}>" if isinstance(reader, Head) else ""
    return f"{_node_name(component(edge.source))}->{_node_name(reader)}{port}"


def _parse_node(name: str, part: str = "z") -> Resid | Head | Mlp | Score | None:
    """The site of that name; None for an unknown one. `part` is that of a head."""
    match = _NODE.fullmatch(name)
    if not match:
        return None
    end, layer, head, mlp = match.groups()
    if end:
        return Resid(0) if end == "input" else Score()
    return Mlp(int(mlp)) if mlp else Head(int(layer), int(head), part)


def _parse_edge(name: str) -> Edge:
    match = _EDGE.fullmatch(name)
    source, reader = (_parse_node(match[1]), _parse_node(match[2], match[3] or "z")) if match else (None, None)
    enters = isinstance(reader, Head if match and match[3] else Mlp | Score)
    if source is None or isinstance(source, Score) or not enters:
        raise MechirError(
            f"it has the edge {short(name)}, which is none: write input->a0.h1<q>, a0.h1->m0 or m0->logits."
        )
    return Edge(source, reader)
