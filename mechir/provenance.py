"""The identity of a run, which decides its numbers, and all else that is recorded with it."""

from __future__ import annotations

import ast
import datetime
import hashlib
import inspect
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
import torch

from mechir import left_out
from mechir.catalog import load_experiment, shipped
from mechir.collection_groups import BETWEEN, Collections, collection_of
from mechir.contrasts import contrasts_hash
from mechir.encoder.certify import refuse_unlike
from mechir.encoder.head import relevant
from mechir.encoder.hooked_model import HookedModel
from mechir.encoder.reading import ASKED
from mechir.errors import MechirError
from mechir.experiment import Experiment
from mechir.methods import ranking
from mechir.pair import Pair, pairs_hash
from mechir.perturbed import Diagnostic
from mechir.registry.names import COLUMNS
from mechir.registry.runs import Run
from mechir.trec_files import run_file

INTACT = "original"
"""The name of the intact model's rows."""
FILES = ("idf", "groups")
"""Options of experiments that name a file."""
SHOWS = ("chart", "table")
"""Methods of experiments that only show what others computed."""
FRAMES = ("judged", "skipped", "left_out")
"""The frames stored beside the rows of a run, and of a run that summarises them."""
CERTIFIED = 8
"""Pairs on which each run compares the model with Hugging Face before anything is measured."""


def source_file(experiment: Experiment) -> str:
    """The file of an experiment; empty for one that was typed in."""
    file = getattr(sys.modules[type(experiment).__module__], "__file__", None)
    return str(Path(file).resolve()) if file else ""


def by_file(experiment: Experiment) -> tuple[str, dict[str, Any], dict[str, pd.DataFrame]]:
    """An experiment as its file, its options and its frames; paths are whole, for workers may be in another folder.

    Raises:
        MechirError: for one that no other process can read as it is: typed in, of the script that runs, in a file with
            others, or with a value that its text does not give again.
    """
    kind, file = type(experiment), source_file(experiment)
    if not file or kind.__module__ == "__main__":
        where = "was typed in" if not file else "is defined in the script that runs"
        raise MechirError(f"{kind.__name__} {where} and no other process can read it: write it into a file of its own.")
    paths = {name: whole_path(value) for name, value in experiment.written.items() if _names_a_file(name, value)}
    experiment = replace(experiment, **paths)
    described = file, experiment.written, experiment.frames
    again = of_file(described)
    if (again.written, again.name) != (experiment.written, experiment.name) or again != experiment:
        raise MechirError(
            f"No other process reads {experiment!r:.200} from '{file}' as it is: that gives {again!r:.200}; write it "
            "into a file of its own, and no comma into the items of a list."
        )
    return described


def of_file(described: tuple[str, Mapping[str, Any], Mapping[str, pd.DataFrame]]) -> Experiment:
    """The experiment that `by_file` described, on any machine that has its file."""
    file, options, frames = described
    return replace(load_experiment(file).chosen(**options), **frames)


def file_hash(experiment: Experiment) -> str:
    """The SHA-256 of an experiment's file, or of its source where it was typed in; raises where that cannot be read."""
    if file := source_file(experiment):
        content = Path(file).read_bytes()
        return hashlib.sha256(content if shipped(experiment.name) else _deciding(content)).hexdigest()
    try:
        return hashlib.sha256(inspect.getsource(type(experiment)).encode()).hexdigest()
    except (OSError, TypeError) as error:
        raise MechirError(
            f"The source of {type(experiment).__name__} cannot be read, so its runs could not be told apart: write it "
            "into a file."
        ) from error


def _deciding(content: bytes) -> bytes:
    """The code of a user's file without comments and without the methods that only show: they decide no number."""
    tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            deciding = [part for part in node.body if not (isinstance(part, ast.FunctionDef) and part.name in SHOWS)]
            node.body = deciding or [ast.Pass()]
    return ast.unparse(tree).encode()


def again(experiment: Experiment, rows: Run) -> dict[str, Any]:
    """The identity of a run that summarises the rows of another."""
    changed = {"experiment": experiment.name, "experiment_sha256": file_hash(experiment), "rows_of": rows.id}
    return rows.record["identity"] | changed


def follow(stored: Run, experiment: Experiment, rows: Run) -> None:
    """Writes the record of a run that summarises the rows of another, and the frames that belong to it."""
    for name in FRAMES:
        if (file := rows.path / f"{name}.parquet").is_file():
            stored.write_frame(name, pd.read_parquet(file))
    record = rows.record | {"id": stored.id, "identity": again(experiment, rows), "rows_of": rows.id}
    stored.write_record(record | {"file": source_file(experiment), "commit": _commit(experiment)})


def identity_of(
    experiment: Experiment,
    model: HookedModel,
    source: Any,
    material: Sequence[Any],
    pool: Any,
    done: Sequence[Run] = (),
) -> dict[str, Any]:
    """The identity of a run: whatever decides its numbers, and so its id; `done` are the runs that it needs."""
    contrasts: dict[str, Any] = {}
    needed = {"needs": [run.id for run in done]} if done else {}
    frames = {name: frame for name, frame in experiment.frames.items() if len(frame) and name not in experiment.derived}
    if isinstance(source, Diagnostic):
        contrasts = {"fillers": list(source.fillers), "swap": source.swap}
        contrasts |= {"axiom": source.axiom, "perturbed": about(source).id, "perturbed_sha256": about(source).hash}
    sample = {name: value for name, value in vars(pool).items() if name != "max_length"}
    deciding = {
        "experiment": experiment.name,
        "experiment_sha256": file_hash(experiment),
        "mechir": metadata.version("mechir-encoders"),
        "options": {name: _counted(name, value) for name, value in (experiment.written | frames).items()},
        "pool": sample | {"run": _content(pool.run, source)},
        "model_fingerprint": model.fingerprint,
        "relevant_label": model.head.relevant_label,
        "collection": source.id,
        "collection_sha256": source.hash,
        "pairs_sha256": contrasts_hash(material) if contrasts else pairs_hash(material),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return contrasts | needed | deciding


def _counted(name: str, value: Any) -> Any:
    """An option as the identity holds it: frames and files by their SHA-256."""
    if isinstance(value, pd.DataFrame):
        return hashlib.sha256(value.to_csv(index=False).encode()).hexdigest()
    is_file = _names_a_file(name, value) and Path(value).is_file()
    return hashlib.sha256(Path(value).read_bytes()).hexdigest() if is_file else value


def about(source: Any) -> Any:
    """The collection that findings on a source are about: the one perturbed, or the only one of a group."""
    if isinstance(source, Diagnostic):
        return source.perturbed or source
    members = source.members if isinstance(source, Collections) else ()
    return members[0][1] if len(members) == 1 else source


def asked_of(experiment: Experiment, model: HookedModel, source: Any, pool: Any) -> dict[str, Any]:
    """The command of a run, to give it again from anywhere; recorded, but no part of its identity.

    `asked`: the options of the experiment as they were given, without those that it chose itself; `given`: the other
    options of the command line, of a diagnostic set made otherwise without those of a pool; `file`: the experiment's;
    `collections`: the one that findings are about, and where it is several, each of them.
    """
    collection, sample = source, {name: value for name, value in vars(pool).items() if name != "max_length"}
    given: dict[str, Any] = {"model": whole_path(model.cfg.model_name), **source.rules}
    label, length = model.head.relevant_label, model.max_length
    given["relevant_label"] = None if label == relevant(model.head.labels, None) else label
    given["max_length"] = length if model.reading.limited_by == ASKED else None
    if isinstance(source, Diagnostic):
        collection, sample = source.perturbed, dict(source.arguments or {})
        given["diagnostic"] = sample.pop("name", source.axiom)
        given |= {"data": str(source.folder.resolve())} if source.folder is not None else {}
        given |= {"filler": list(source.fillers), "swap": source.swap}
    if isinstance(collection, Collections):
        given["collection"] = [f"{group}:{member.address}" for group, member in collection.members]
    elif collection is not None:
        given["collection"] = [collection.address]
    given |= sample | ({"run": whole_path(sample["run"])} if sample.get("run") else {})
    options = {
        name: whole_path(value) if _names_a_file(name, value) else value for name, value in experiment.written.items()
    }
    whole = about(source)
    members: list[Any] = [member for _, member in whole.members] if isinstance(whole, Collections) else []
    named = [dict(zip(COLUMNS, (each.id, each.full_name, each.hash), strict=True)) for each in (whole, *members)]
    return {"asked": options, "given": given, "file": source_file(experiment), "collections": named}


def _names_a_file(name: str, value: Any) -> bool:
    """Whether an option names a file; a text with tabs is the content of one."""
    return name in FILES and bool(value) and "\t" not in value


def whole_path(name: str | Path) -> str:
    """The whole path of a file or a folder; a name as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else str(name)


def _content(name: str | Path | None, source: Any) -> str | None:
    """The SHA-256 of a run's file, by its path or by its name in the collection; of several collections the name."""
    if name is None:
        return None
    collection = about(source)
    if isinstance(collection, Collections) and not Path(name).is_file():
        return str(name)
    file = run_file(name, getattr(collection, "folder", None), collection.id)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def begin(
    stored: Run,
    identity: Mapping[str, Any],
    experiment: Experiment,
    model: HookedModel,
    pairs: Sequence[Pair],
    frames: Mapping[str, pd.DataFrame],
    command: Mapping[str, Any],
) -> None:
    """Writes the record of a run and the frames that belong to it, before anything is measured.

    `command`: `asked_of`, how many queries were held back, the full forwards that the plan counts, how many units there
    are, of how many pairs.
    """
    encoded, packages = model.encode(pairs), ("torch", "transformers", "transformer-lens", "pandas")
    for name, frame in frames.items():
        stored.write_frame(name, frame)
    stored.write_record(
        {
            "id": stored.id,
            "identity": dict(identity),
            **command,
            "model": model.cfg.model_name,
            "model_revision": model.revision,
            "pairs": len(pairs),
            "queries": len({pair.query_id for pair in pairs}),
            "skipped": len(frames.get("skipped", ())),
            "left_out": left_out.by_reason(frames["left_out"]) if "left_out" in frames else {},
            "tokens": int(encoded.lengths.sum()),
            "truncated_documents": encoded.truncated,
            "reading": asdict(model.reading),
            "certificate": certificate(model, pairs),
            "versions": {name: metadata.version(name) for name in packages},
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "host": platform.node(),
            "commit": _commit(experiment),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )


def quality(stored: Run) -> list[dict[str, Any]]:
    """The mean nDCG@10 of the intact model on each collection, where the rows hold its scores.

    `n` of `queries` count; `over_all` is the mean with the others as 0, as ir_measures has it over all judgments.
    """
    rows = stored.rows
    if not {"name", "query_id", "doc_id", "score"} <= set(rows) or INTACT not in set(rows["name"]):
        return []
    values = ranking.ndcg(rows[rows["name"] == INTACT], stored.judged).set_index("query_id")["value"]
    silent = [] if stored.record.get("held_back") else left_out.queries(stored.left_out, left_out.NO_PAIR)
    queries = pd.Series([*rows["query_id"].unique(), *silent])
    collections = queries.map(lambda key: collection_of(key) if BETWEEN in key else "")
    lines = []
    for name, ids in queries.groupby(collections, sort=False):
        here = values[values.index.isin(ids)]
        line = {"collection": name, "measure": "nDCG@10", "value": float(here.mean()) if len(here) else None}
        lines.append(line | {"n": len(here), "queries": len(ids), "over_all": float(here.sum() / len(ids))})
    return lines


_CERTIFICATES: WeakKeyDictionary[HookedModel, dict[tuple[str, ...], dict[str, Any]]] = WeakKeyDictionary()


def certificate(model: HookedModel, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The parity certificate over some of the pairs, made once; raises where Hugging Face reads or scores otherwise."""
    some = list(pairs[:: max(1, len(pairs) // CERTIFIED)])[:CERTIFIED]
    known = _CERTIFICATES.setdefault(model, {})
    key = (pairs_hash(some), str(model.dtype), str(model.device))  # `to` changes a model in place
    if key not in known:
        made = model.certify(some)
        refuse_unlike(made, model.cfg.model_name)
        known[key] = made
    return known[key]


def _commit(experiment: Experiment) -> str | None:
    """The git commit of the experiment's folder, where it is in a checkout."""
    if not (file := source_file(experiment)):
        return None
    command, folder = ["git", "rev-parse", "HEAD"], Path(file).parent
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
