"""Running an experiment: cut the pool into units, compute the missing ones, store, summarise, draw.

An experiment is a file under `analyses/` with `measure(model, pairs, *, <options>) -> DataFrame` (rows per pair, for
whole queries), `summarise(rows, judged) -> DataFrame` and `chart(summary)`. One whose `measure` takes `contrasts` in
the place of pairs runs on a diagnostic set; `summarise` may ask for the `model`, the `collection` and options by their
names. It may define `prepare(model, material, **options)`, which returns what is measured and the options that it found
on the rest, and may ask for the `collection` too.
A unit is a run of whole queries and one call of `measure`; batches never cross it, so a part does not depend on which
process computed it, or when.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import inspect
import math
import platform
import resource
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch

import mechir
from mechir.collection import Collection
from mechir.contrasts import Contrast, contrasts_hash
from mechir.diagnostic_sets import Diagnostic
from mechir.errors import MechirError, closest
from mechir.pairs import Pair, pairs_hash
from mechir.registry.runs import DEFAULT, Run, open_run
from mechir.sweep import forwards

UNIT = 128
"""A unit is closed at the first whole query that brings it to this many pairs."""
CERTIFIED = 8
"""Pairs on which each run compares the model with Hugging Face before anything is measured."""


@dataclass(frozen=True)
class Pool:
    """Which pairs of a collection are scored: the arguments of `Collection.pairs`, as given."""

    per_grade: int | None = None
    easy_negatives: int | None = None
    top_k: int | None = None
    run: str | None = None
    limit_queries: int | None = None
    seed: int = 0

    def pairs(self, collection: Collection) -> list[Pair]:
        """The pairs, whole queries one after the other."""
        return collection.pairs(**vars(self))


@dataclass(frozen=True)
class Shard:
    """Which units this process computes: those whose number is `index` modulo `of`."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`I/N` with I from 0 to N: both `--array=0-9` and `--array=1-10` of Slurm cover everything."""
        index, _, of = text.partition("/")
        if not (index.isdigit() and of.isdigit() and int(of) > 0 and int(index) <= int(of)):
            raise MechirError(f"Cannot read --shard '{text}': write I/N with 0 <= I <= N, e.g. 3/10.")
        return cls(int(index) % int(of), int(of))


def experiments() -> dict[str, Path]:
    """The experiments that come with mechir, by name: `vast2025/direction_ablation` and so on."""
    folder = _analyses()
    files = sorted(file for file in folder.glob("*/*.py") if not file.name.startswith("_"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def _analyses() -> Path:
    package = Path(mechir.__file__).parent
    inside = package / "_analyses"
    return inside if inside.is_dir() else package.parent / "analyses"


def load_experiment(name: str) -> ModuleType:
    """The module of an experiment, by name or by the path of a `.py` file; `module.name` is its name.

    Raises:
        MechirError: for an unknown name, or a file without `measure`, `summarise` and `chart`.
    """
    known = experiments()
    file = Path(name) if name.endswith(".py") else known.get(name)
    if file is None or not file.is_file():
        raise MechirError(f"Unknown experiment '{name}'. The closest are {closest(name, known)}; or give a .py file.")
    spec = importlib.util.spec_from_file_location(f"mechir_experiment_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [part for part in ("measure", "summarise", "chart") if not callable(getattr(module, part, None))]
    if missing:
        raise MechirError(f"'{file}' is no experiment: it defines no {' and no '.join(missing)}.")
    module.name = next((key for key, path in known.items() if path == file), file.stem)  # type: ignore[attr-defined]
    return module


def options(experiment: ModuleType) -> dict[str, inspect.Parameter]:
    """The options of an experiment: the keyword-only parameters of its `measure`."""
    parameters = inspect.signature(experiment.measure, eval_str=True).parameters
    return {name: one for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}


def takes_contrasts(experiment: ModuleType) -> bool:
    """Whether an experiment runs on contrasts (of a diagnostic set) rather than on pairs."""
    return "contrasts" in inspect.signature(experiment.measure).parameters


def _what(module: ModuleType) -> str:
    return "contrasts" if takes_contrasts(module) else "pairs"


Material = list[Any]
"""What an experiment runs on: pairs, or contrasts."""


def units(pairs: Sequence[Any]) -> list[list[Any]]:
    """The pairs or contrasts in units of whole queries, each closed once it holds `UNIT` of them."""
    found: list[list[Any]] = [[]]
    for query in _queries(pairs):
        if len(found[-1]) >= UNIT:
            found.append([])
        found[-1] += query
    return found


def _queries(pairs: Sequence[Any]) -> Iterator[list[Any]]:
    by_query: dict[str, list[Any]] = {}
    for pair in pairs:
        by_query.setdefault(pair.query_id, []).append(pair)
    yield from by_query.values()


def run(
    experiment: str | ModuleType,
    model: Any,
    source: Collection | Diagnostic,
    *,
    pool: Pool | None = None,
    registry: Path | str = DEFAULT,
    shard: Shard | None = None,
    fresh: bool = False,
    say: Callable[[str], None] | None = None,
    **chosen: Any,
) -> Run:
    """Runs an experiment, or what is missing of it, and returns the stored run.

    Args:
        experiment: its name, path or module.
        model: a `HookedEncoder`.
        source: a collection, or for an experiment on contrasts a diagnostic set.
        pool: which pairs of the collection; by default all judged ones.
        registry: where runs are kept.
        shard: which units this process computes; the run is summarised by whichever process finds it complete.
        fresh: compute everything anew, as a run of its own.
        say: called with one line of progress at a time (by default nothing is said).
        chosen: options of the experiment.

    Raises:
        MechirError: for unknown options, an empty pool, or what the model refuses.
    """
    module = load_experiment(experiment) if isinstance(experiment, str) else experiment
    say, shard, pool = say or (lambda line: None), shard or Shard(), pool or Pool()
    chosen = _options(module, chosen)
    if hasattr(module, "interventions"):
        forwards(model, module.interventions(model, **chosen))  # refuses what does not fit before anything is written
    material, skipped = material_of(module, model, source, pool)
    if hasattr(module, "prepare"):
        asked = _by_name(module.prepare, {"collection": source})
        material, found = module.prepare(model, material, **asked, **chosen)
        if found:
            say(f"found on the other queries: {', '.join(f'{name} {value}' for name, value in found.items())}")
        chosen |= found
    cut = units(material)
    identity = _identity(module, model, source, material, pool, chosen)
    identity |= {"fresh": secrets.token_hex(8)} if fresh else {}
    stored = open_run(
        Path(registry),
        identity,
        lambda run: _begin(run, identity, module, model, source, material, pool, skipped, len(cut)),
    )
    queries = len({one.query_id for one in material})
    say(f"Run {stored.id}: {len(material)} {_what(module)} of {queries} queries in {len(cut)} units")
    mine = [unit for unit in range(len(cut)) if unit % shard.of == shard.index]
    _compute(stored, module, model, cut, [unit for unit in mine if unit not in stored.done()], chosen, say)
    if len(stored.done()) == len(cut):
        _finish(stored, module, {"model": model, "collection": source} | chosen)
    return stored


def material_of(
    module: ModuleType, model: Any, source: Collection | Diagnostic, pool: Pool
) -> tuple[Material, pd.DataFrame | None]:
    """The pairs or contrasts that an experiment runs on, and which were left out and why.

    Raises:
        MechirError: when the experiment runs on the other kind.
    """
    if isinstance(source, Diagnostic):
        if not takes_contrasts(module):
            raise MechirError(f"'{module.name}' runs on pairs, not on contrasts: give a collection.")
        if pool != Pool():
            raise MechirError("A diagnostic set is sampled when it is made: write diagnostic(..., limit_queries=20).")
        return source.align(model)
    if takes_contrasts(module):
        raise MechirError(f"'{module.name}' runs on contrasts: give a diagnostic set such as diagnostic('tfc1').")
    return pool.pairs(source), None


def _compute(
    stored: Run,
    module: ModuleType,
    model: Any,
    cut: Sequence[list[Any]],
    missing: Sequence[int],
    chosen: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Measures and stores the missing units; an interruption loses the unit in work and nothing else."""
    total, done, start = sum(len(cut[unit]) for unit in missing), 0, time.monotonic()
    for unit in missing:
        began = time.monotonic()
        rows = module.measure(model, cut[unit], **chosen)
        stored.write_part(unit, rows, time.monotonic() - began)
        done += len(cut[unit])
        left = (time.monotonic() - start) / done * (total - done)
        say(f"unit {unit + 1}/{len(cut)}: {done}/{total} {_what(module)}, {_duration(left)} left")


def _finish(stored: Run, module: ModuleType, known: Mapping[str, Any]) -> None:
    """Summary and chart, made once; the summary is given what it asks for among `known`."""
    from mechir.views import charts

    if (stored.path / "summary.parquet").is_file():
        return
    summary = module.summarise(stored.rows, stored.judged, **_by_name(module.summarise, known))
    charts.save(module.chart(summary), stored.path / "chart")
    stored.write_record(stored.record | {"seconds": round(stored.seconds, 1)})
    stored.write_frame("summary", summary)


def _by_name(function: Callable[..., Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What a function asks for by name among what is known."""
    return {name: known[name] for name in inspect.signature(function).parameters if name in known}


def _options(module: ModuleType, chosen: Mapping[str, Any]) -> dict[str, Any]:
    known = options(module)
    for name in chosen:
        if name not in known:
            raise MechirError(f"'{module.name}' has no option '{name}': it takes {', '.join(known) or 'none'}.")
    return {name: chosen.get(name, one.default) for name, one in known.items()}


def _identity(
    module: ModuleType,
    model: Any,
    source: Collection | Diagnostic,
    material: Material,
    pool: Pool,
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides the numbers, and so the id of the run."""
    contrasts = {"fillers": list(source.fillers), "swap": source.swap} if isinstance(source, Diagnostic) else {}
    return contrasts | {
        "experiment": module.name,
        "experiment_sha256": hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest(),
        "mechir": metadata.version("mechir-encoders"),
        "options": dict(chosen),
        "pool": vars(pool),
        "model_fingerprint": model.fingerprint,
        "relevant_label": model.head.relevant_label,
        "collection": source.id,
        "collection_sha256": source.hash,
        "pairs_sha256": contrasts_hash(material) if contrasts else pairs_hash(material),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def _begin(
    stored: Run,
    identity: Mapping[str, Any],
    module: ModuleType,
    model: Any,
    source: Collection | Diagnostic,
    material: Material,
    pool: Pool,
    skipped: pd.DataFrame | None,
    n_units: int,
) -> None:
    pairs: list[Any] = [one.base if isinstance(one, Contrast) else one for one in material]
    certified = list(pairs[:: max(1, len(pairs) // CERTIFIED)])[:CERTIFIED]
    encoded = model.encode(pairs)
    stored.write_frame("judged", source.judged(pairs, full=pool.run is not None or pool.top_k is not None))
    if skipped is not None:
        stored.write_frame("skipped", skipped)
    stored.write_record(
        {
            "id": stored.id,
            "identity": dict(identity),
            "model": model.cfg.model_name,
            "units": n_units,
            "pairs": len(pairs),
            "queries": len({pair.query_id for pair in pairs}),
            "skipped": 0 if skipped is None else len(skipped),
            "truncated_documents": encoded.truncated,
            "certificate": model.certify(certified),
            "versions": {
                name: metadata.version(name) for name in ("torch", "transformers", "transformer-lens", "pandas")
            },
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "host": platform.node(),
            "commit": _commit(Path(str(module.__file__)).parent),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )


def _commit(folder: Path) -> str | None:
    """The git commit of the experiment's folder, where it is in a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def estimate(experiment: str | ModuleType, model: Any, material: Sequence[Any], **chosen: Any) -> dict[str, Any]:
    """What a run would cost, from its interventions and a timing of the intact model on 32 of the pairs.

    An experiment on contrasts says its cost itself: `cost(model, **options)`, full forwards per contrast.

    Returns:
        `pairs`, `forwards` (full forward passes of one pair, work shared between interventions counted once),
        `minutes` on this machine and thread count, `memory_gb` (peak, weights included).
    """
    module = load_experiment(experiment) if isinstance(experiment, str) else experiment
    chosen = _options(module, chosen)
    if hasattr(module, "cost"):
        per_pair = module.cost(model, **chosen)
    else:
        per_pair = forwards(model, module.interventions(model, **chosen))
    pairs = [one.base if isinstance(one, Contrast) else one for one in material]
    lengths = model.encode(pairs).lengths
    sample = list(pairs[:: max(1, len(pairs) // 32)])[:32]
    times = []
    for _ in range(3):  # the first warms up
        start = time.monotonic()
        model.score(sample)
        times.append(time.monotonic() - start)
    seconds = min(times) * lengths.sum() / model.encode(sample).lengths.sum()
    return {
        "pairs": len(pairs),
        "forwards": math.ceil(per_pair * len(pairs)),
        "minutes": float(seconds * per_pair / 60),
        "memory_gb": _memory_gb(model, int(lengths.max())),
    }


def _memory_gb(model: Any, longest: int) -> float:
    """What the process holds now, and the states, MLP and attention of the widest chunk of a sweep."""
    c, number = model.cfg, 8 if model.dtype == torch.float64 else 4
    rows = max(1, model.max_tokens // longest)
    tokens = rows * longest
    states = (c.n_layers + 4) * tokens * c.d_model
    widest = max(2 * tokens * c.d_mlp, 3 * rows * c.n_heads * longest**2)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 + (states + widest) * number / 2**30)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
