"""Running an experiment: cut the pool into units, compute the missing ones, store, summarise, draw.

An experiment is a file under `analyses/` with `measure(model, pairs, *, <options>) -> DataFrame` (rows per pair, for
whole queries), `summarise(rows, judged) -> DataFrame` and `chart(summary)`; `table(summary)` is what a terminal prints
where that is not all of it, and `findings(summary)` what the registry is told of components. One whose `measure` takes
`contrasts` in the place of pairs runs on a diagnostic set; one with `rows_of = "paper/experiment"` in the place of
`measure` summarises the rows of that one.

`check(model, material, **options)` refuses what does not fit before anything is measured or written, and returns the
options that it writes in their normal form. `prepare(model, material, **options)` returns what is measured, and options
or frames that it found on the rest. Both may ask by name for the `collection`, for `collections` (one or several in
groups), the `pool` and the `registry`, `prepare` also for `run`, which runs another experiment on the same source, and
for `say`, which says a line;
`summarise` for these, the `model` and any option, `findings` for all of it and `rows`. `EMBEDDED` is the pool of the
embedded collection that it takes on the command line by default; where `REPORT` is true a report follows.
A unit is a run of whole queries and one call of `measure`; batches never cross it, so a part does not depend on which
process computed it, or when.
"""

from __future__ import annotations

import importlib.util
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

import mechir
from mechir import provenance
from mechir.collection import Collection
from mechir.collection_groups import Collections
from mechir.encoder.hooked import HookedEncoder
from mechir.encoder.intact import refuse_altered
from mechir.encoding import REASONS
from mechir.errors import MechirError, closest
from mechir.inference import FEWEST
from mechir.material import Material, Pool, Source, Taken, material_of, pairs_of, source_of, takes_contrasts
from mechir.options import by_name, in_normal_form, with_defaults
from mechir.perturbed import Diagnostic
from mechir.registry import entries
from mechir.registry.findings import checked, of_record, placed
from mechir.registry.runs import DEFAULT, Run, open_run

SHOWN = 60
"""Of what `prepare` found, characters that are said."""
UNIT = 128
"""A unit is closed at the first whole query that brings it to this many pairs."""


@dataclass(frozen=True)
class Shard:
    """Which units this process computes: those whose number is `index` modulo `of`."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`I/N` with I from 0 to N: both `--array=0-9` and `--array=1-10` of Slurm cover everything."""
        index, _, of = text.partition("/")
        numbers = all(part.isascii() and part.isdigit() for part in (index, of))
        if not (numbers and int(of) > 0 and int(index) <= int(of)):
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
    if hasattr(module, "rows_of"):
        of = load_experiment(module.rows_of)
        for part in ("measure", "check", "prepare", "cost", "interventions"):
            if hasattr(of, part):
                setattr(module, part, getattr(of, part))
    missing = [part for part in ("measure", "summarise", "chart") if not callable(getattr(module, part, None))]
    if missing:
        raise MechirError(f"'{file}' is no experiment: it defines no {' and no '.join(missing)}.")
    whole = file.resolve()
    module.name = next((key for key, path in known.items() if path.resolve() == whole), file.stem)  # type: ignore[attr-defined]
    return module


def shown(name: str, summary: pd.DataFrame) -> pd.DataFrame:
    """What a terminal prints of a summary: `table` of the experiment where it has one and is here, else all."""
    if name not in experiments():
        return summary
    table = getattr(load_experiment(name), "table", None)
    return summary if table is None else table(summary)


def _what(module: ModuleType) -> str:
    return "contrasts" if takes_contrasts(module) else "pairs"


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
    experiment: str | Path | ModuleType,
    model: Any,
    source: Source,
    *,
    pool: Any = None,
    registry: Path | str = DEFAULT,
    shard: Any = None,
    fresh: bool = False,
    say: Callable[[str], None] | None = None,
    **chosen: Any,
) -> Run:
    """Runs an experiment, or what is missing of it, and returns the stored run.

    Args:
        experiment: its name, path or module.
        model: a `HookedEncoder`.
        source: a collection, several in groups, or for an experiment on contrasts a diagnostic set.
        pool: which pairs of the collection; by default all judged ones.
        registry: where runs are kept.
        shard: which units this process computes; the run is summarised by whichever process finds it complete.
        fresh: compute everything anew, as a run of its own.
        say: called with one line of progress at a time (by default nothing is said).
        chosen: options of the experiment.

    Raises:
        MechirError: for unknown options, an empty pool, what the model refuses, and a model that is not the one that
            its fingerprint names or does not score as Hugging Face's does.
    """
    _refuse_kinds(model, source, pool, shard)
    module = load_experiment(str(experiment)) if isinstance(experiment, str | Path) else experiment
    say, shard, pool, registry = say or (lambda line: None), shard or Shard(), pool or Pool(), Path(registry)
    refuse_altered(model)
    model = model.limited(pool.max_length)
    chosen = with_defaults(module, chosen)
    source = source_of(module, source)
    asked = {"model": model, "source": source, "pool": pool, "registry": registry, "say": say}
    if hasattr(module, "rows_of"):
        of = run(module.rows_of, **asked, shard=shard, fresh=fresh, **chosen)
        stored = open_run(registry, provenance.again(module, of), lambda run: provenance.follow(run, module, of))
    else:
        stored, chosen = _measured(module, asked, shard, fresh, chosen)
    if len(stored.done()) == stored.record["units"]:
        _finish(stored, module, {"model": model, "collection": source, "collections": source} | chosen)
    return stored


def _refuse_kinds(model: Any, source: Any, pool: Any, shard: Any) -> None:
    """Raises for arguments of another kind, with what makes the right one."""
    for name, value, kinds, write in (
        ("model", model, HookedEncoder, "mechir.load(...)"),
        ("source", source, Collection | Collections | Diagnostic, "mechir.collection(...) or mechir.diagnostic(...)"),
        ("pool", pool, Pool | None, "mechir.Pool(per_grade=5, ...)"),
        ("shard", shard, Shard | None, "mechir.experiment.Shard.parse('0/4')"),
    ):
        if not isinstance(value, kinds):
            raise MechirError(f"Cannot run with {name}={value!r:.60}: write {name}={write}.")


def _measured(
    module: ModuleType, asked: Mapping[str, Any], shard: Shard, fresh: bool, chosen: dict[str, Any]
) -> tuple[Run, dict[str, Any]]:
    """The run of what is `asked` with the units of this shard in it, and the options with those that it found."""
    model, source, pool, say = (asked[name] for name in ("model", "source", "pool", "say"))
    taken = material_of(module, model, source, pool)
    material = taken.material
    known = known_of(source, pool, asked["registry"])
    given = chosen = in_normal_form(module, model, material, chosen, known)
    provenance.certificate(model, pairs_of(material))
    if hasattr(module, "prepare"):
        known |= {"run": partial(run, **asked), "say": say}
        material, found = module.prepare(model, material, **by_name(module.prepare, known), **chosen)
        _say_found(found, say)
        chosen = chosen | found
        if not material:
            raise MechirError(f"Nothing of this pool is left to measure for '{module.name}': take more queries.")
    cut = units(material)
    identity = provenance.identity_of(module, model, source, material, pool, chosen)
    identity |= {"fresh": secrets.token_hex(8)} if fresh else {}

    def begin(stored: Run) -> None:
        frames = _frames(source, material, pool, taken, chosen)
        held_back = {one.query_id for one in taken.material} - {one.query_id for one in material}
        asked_for = provenance.asked_of(module, model, source, pool, given)
        asked_for |= {"held_back": len(held_back)}  # queries on which `prepare` found something
        provenance.begin(stored, identity, module, model, pairs_of(material), frames, len(cut), asked_for)

    stored = open_run(asked["registry"], identity, begin)
    queries = len({one.query_id for one in material})
    say(f"Run {stored.id}: {len(material)} {_what(module)} of {queries} queries in {len(cut)} units")
    if queries < FEWEST:
        say(f"{queries} queries are too few to test: intervals are Student's; tests need {FEWEST} or more.")
    missing = [unit for unit in range(shard.index, len(cut), shard.of) if unit not in stored.done()]
    _compute(stored, module, model, cut, missing, chosen, say)
    return stored, chosen


def known_of(source: Source, pool: Pool, registry: Path) -> dict[str, Any]:
    """What `check` and `prepare` may ask for by name."""
    return {"collection": source, "collections": source, "pool": pool, "registry": registry}


def _frames(
    source: Source, material: Material, pool: Pool, taken: Taken, chosen: Mapping[str, Any]
) -> dict[str, pd.DataFrame]:
    """What is stored beside the rows: judgments, what was left out, and frames that `prepare` found."""
    judged = source.judged(pairs_of(material), full=pool.full)
    if taken.left_out is not None:  # what the model cannot read is in no ideal ranking either
        unread = taken.left_out[taken.left_out["reason"].isin(REASONS)]
        gone = pd.MultiIndex.from_frame(unread[["query_id", "doc_id"]])
        judged = judged[~pd.MultiIndex.from_frame(judged[["query_id", "doc_id"]]).isin(gone)].reset_index(drop=True)
    frames = {"judged": judged}
    frames |= {name: one for name, one in chosen.items() if isinstance(one, pd.DataFrame)}
    if taken.left_out is not None and len(taken.left_out):
        frames["left_out"] = taken.left_out
    return frames if taken.skipped is None else frames | {"skipped": taken.skipped}


def _say_found(found: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Says what `prepare` found, long lists cut short."""
    told = {name: f"{len(one)} rows" if isinstance(one, pd.DataFrame) else str(one) for name, one in found.items()}
    short = {name: one if len(one) <= SHOWN else f"{one[:SHOWN]}..." for name, one in told.items()}
    if short:
        say(f"found: {', '.join(f'{name} {one}' for name, one in short.items())}")


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
    """Summary, chart and findings, made once; they are given what they ask for among `known`."""
    from mechir.views import charts

    if not (stored.path / "summary.parquet").is_file():
        summary = module.summarise(stored.rows, stored.judged, **by_name(module.summarise, known))
        charts.save(module.chart(summary), stored.path / "chart")
        measured = {"seconds": round(stored.seconds, 1), "quality": provenance.quality(stored)}
        stored.write_record(stored.record | measured)
        stored.write_frame("summary", summary)
    registry = stored.path.parents[1]
    if hasattr(module, "findings") and not entries.has_findings(registry, stored.id):
        of = of_record(stored.record)
        asks = {"summary": stored.summary, "rows": stored.rows} | of | dict(known)
        found = module.findings(**by_name(module.findings, asks))
        entries.record(registry, stored.id, checked(placed(found, stored.record), of))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
