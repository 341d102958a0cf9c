"""Circuits and edge scores as JSON files that other tools read and write: `save_circuit`, `load_circuit`.

* `"mib"`: the edge format of the MIB benchmark and EAP-IG. Holds the circuit and the scores of all edges, both ways.
* `"circuit-tracer"`: a graph for circuit-tracer's pages and Neuronpedia. Holds the circuit and the scores of its edges.
  A link there joins two components and names no q, k or v; they stand in a key of our own that other tools keep or
  skip, so a graph that another tool made is not read.

`mib_format` and `tracer_format` say what stands where, and which versions they follow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mechir.atomic import written
from mechir.circuits import Circuit, Edge, parse_edge
from mechir.errors import MechirError, brief
from mechir.methods.edge_scores import EdgeScores
from mechir.methods.mib_format import as_mib, from_mib
from mechir.methods.saved_circuits import SavedCircuit, Shape, checked
from mechir.methods.tracer_format import as_graph, from_graph
from mechir.reranker import Reranker, needs

FORMATS = ("mib", "circuit-tracer")
LARGEST = 512 * 1024**2
"""Bytes of a file that is read: the scores of all 231,877 edges of a BERT-large take 17 MB."""
AS_TEXT = "keep its circuits as text, str(circuit)"


def save_circuit(
    file: Path | str,
    model: Reranker,
    circuit: Any = None,
    scores: EdgeScores | Mapping[Edge, float] | None = None,
    *,
    format: str = "mib",
) -> Path:
    """Writes a circuit, the scores of edges, or both: `mi.save_circuit("tf.json", model, circuit, scores)`.

    Args:
        file: to write, whole or not at all.
        model: whose circuit it is; its sizes are written.
        circuit: a `Circuit`, or edges; without any, only scores are written.
        scores: of `edges`, the mean over queries is written; or numbers by edge, as `load_circuit` gives them.
            An edge that was not measured (NaN) has no score there.
        format: "mib", or "circuit-tracer", which keeps the scores of the circuit's edges alone. To see it on
            circuit-tracer's page, put the file into its folder with `add_graph_metadata`.

    Returns:
        The path of the file.

    Raises:
        MechirError: for a model that is no post-LN encoder, an unknown format, nothing to save, an edge that the model
            lacks or that leads backwards, scores of another model, a path that cannot be written.
    """
    needs(model, "save_circuit", Reranker, norm="post", instead=AS_TEXT)
    if circuit is None and scores is None:
        raise MechirError("There is nothing to save: give a circuit, scores of edges, or both.")
    shape = Shape.of(model)
    values: dict[Edge, float] = {}
    if isinstance(scores, Mapping):
        values = {_edge(edge): value for edge, value in scores.items()}
    elif scores is not None:
        if not isinstance(scores, EdgeScores):
            raise MechirError(f"scores= was given a value of type {type(scores).__name__}: write mi.edges(...).")
        if scores.graph.n_layers != shape.n_layers:
            raise MechirError(
                f"The scores are of a model of {scores.graph.n_layers} layers, and '{shape.name}' has {shape}: give "
                "the model that they belong to."
            )
        values = dict(zip(scores.graph.edges, scores.estimate.tolist(), strict=True))
    return write(file, SavedCircuit(_circuit(circuit), values, shape), format=format)


def _edge(given: Any) -> Edge:
    """The edge that a score is of."""
    if not isinstance(given, Edge | str):
        raise MechirError(f"scores= has {given!r:.60}, which is no edge: write numbers by edge, {{'h1.2->mlp1': 0.5}}.")
    return parse_edge(given) if isinstance(given, str) else given


def _path(file: Any) -> Path:
    """The path of a file; raises for what names none."""
    if not isinstance(file, str | os.PathLike) or not (name := os.fspath(file)) or "\0" in str(name):
        raise MechirError(f"file={file!r:.60} is no name of a file: write e.g. 'tf.json'.")
    return Path(file)


def _circuit(edges: Any) -> Circuit:
    listed = [edges] if isinstance(edges, Edge | str) else list(edges) if isinstance(edges, Iterable) else edges
    if listed is not None and not (isinstance(listed, list) and all(isinstance(edge, Edge | str) for edge in listed)):
        raise MechirError(f"circuit= was given a value of type {type(edges).__name__}: write a Circuit, or edges.")
    return Circuit(listed or ())


def load_circuit(file: Path | str, model: Reranker) -> SavedCircuit:
    """Reads a circuit of this model, and its scores: `circuit, scores, _ = mi.load_circuit("tf.json", model)`.

    Args:
        file: that `save_circuit` or EAP-IG's `to_json` wrote; its keys say in which format.
        model: to which it must belong.

    Raises:
        MechirError: for a model that is no post-LN encoder, a file that is none of a circuit (see `read`), a circuit of
            a model of another size.
    """
    needs(model, "load_circuit", Reranker, norm="post", instead=AS_TEXT)
    saved, shape = read(file), Shape.of(model)
    if saved.shape != shape:
        raise MechirError(
            f"'{file}' is a circuit of a model of {saved.shape}, and '{shape.name}' has {shape}: give the model that "
            "it was found in."
        )
    return saved


def write(file: Path | str, saved: SavedCircuit, *, format: str = "mib") -> Path:
    """Writes what was read, so that one format becomes the other: `write("graph.json", read("tf.json"), format=...)`.

    Raises:
        MechirError: as `save_circuit`.
    """
    if format not in FORMATS:
        raise MechirError(f"Unknown format='{format}': write {' or '.join(map(repr, FORMATS))}.")
    target = _path(file)
    try:
        whole = checked(*saved)
        content = as_mib(whole) if format == "mib" else as_graph(whole, target.stem)
    except MechirError as error:
        raise MechirError(f"Cannot write '{file}': {error}") from error
    text = json.dumps(content, allow_nan=False, indent=None if format == "mib" else 2)
    return written(target, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def read(file: Path | str) -> SavedCircuit:
    """What a file holds, of whatever model.

    Raises:
        MechirError: for a file that cannot be read, is no JSON, is in neither format, or is damaged in it (see
            `from_mib` and `from_graph`).
    """
    source = _path(file)
    try:
        return _parsed(_content(source))
    except OSError as error:
        raise MechirError(f"Cannot read '{file}' ({error.strerror}).") from error
    except RecursionError as error:
        raise MechirError(f"Cannot read '{file}' as a circuit: it is nested too deeply.") from error
    except MechirError as error:
        raise MechirError(f"Cannot read '{file}' as a circuit: {error}") from error


def _content(file: Path) -> Any:
    if file.exists() and not file.is_file():
        raise MechirError("it is no file.")
    if file.stat().st_size > LARGEST:
        raise MechirError(f"it has more than {LARGEST // 1024**2} MB.")
    try:
        return json.loads(file.read_bytes(), object_pairs_hook=_unique)
    except MechirError:
        raise
    except ValueError as error:  # JSON, encoding, or a number of thousands of digits
        raise MechirError(f"it is no JSON ({brief(error)}).") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; raises for a name that it has twice, of which Python would keep the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in content if names.count(name) > 1)
        raise MechirError(f"it has {twice[:60]!r} twice in one object.")
    return content


def _parsed(content: Any) -> SavedCircuit:
    keys = set(content) if isinstance(content, dict) else set()
    if {"cfg", "nodes", "edges"} <= keys:
        return from_mib(content)
    if {"metadata", "nodes", "links"} <= keys:
        return from_graph(content)
    raise MechirError(
        "it is in neither format: MIB's has cfg, nodes and edges, circuit-tracer's has metadata, nodes and links."
    )
