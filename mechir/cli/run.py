"""`mechir run`: an experiment is a command, whose options are its fields."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechir.cli.ask import print_answers, print_summary
from mechir.cli.help import Flag, Group
from mechir.cli.options import COUNT, MODEL, PATH, REGISTRY, Command, collection_option, option, rules_of, shared
from mechir.cli.plan import print_plan
from mechir.cli.where import WHERE, engine_of, say, watch_of
from mechir.errors import MechirError

if TYPE_CHECKING:
    from mechir.encoder.hooked_model import HookedModel
    from mechir.experiment import Experiment
    from mechir.options import Option

DEFAULT_QUERIES = 20
"""How many queries of the embedded collection an experiment takes by default: some minutes on two cores."""

_DIAGNOSTIC = (
    option("--diagnostic", help="What is changed in a text: tfc1, tdc, lnc1, ... [default: tfc1]."),
    option("--data", type=PATH, metavar="DIR", help="A directory with a published diagnostic set."),
    option(
        "--filler",
        "fillers",
        multiple=True,
        metavar="WORD",
        help="Of one word piece; may be repeated [default: a, the].",
    ),
    option("--swap", is_flag=True, help="Run on the perturbed text, take activations from the other."),
)
LONG = 40
"""Letters of a default from which on it may stand on several lines."""
SEED = click.IntRange(-(2**63), 2**63 - 1)
_POOL = (
    option("--per-grade", type=COUNT, help="At most N judged documents per grade and query [default: all]."),
    option(
        "--easy-negatives",
        type=click.IntRange(min=0),
        help="N unjudged documents per query, as grade -1 [default: 0; embedded: 20; contrasts: 0].",
    ),
    option("--run", help="A TREC run whose documents are the pool."),
    option("--top-k", type=COUNT, help="The first N documents of the run, or of BM25."),
    option("--seed", type=SEED, default=0, show_default=True, help="Of everything drawn at random."),
)
_STORE = (
    REGISTRY,
    option("--dry-run", is_flag=True, help="Only say what it would cost: pairs, forwards, minutes, memory."),
    option(
        "--shard", metavar="I/N", default="0/1", help="Compute every N-th unit alone, for job arrays [default: all]."
    ),
    option("--fresh", is_flag=True, help="Compute everything anew, as a run of its own."),
    *WHERE,
)


BY_DEFAULT = ("--limit-queries 10", "--dry-run")
"""The examples of an experiment that has none of its own."""
EXAMPLES = """\b
Examples:
  mechir run --dry-run                      what the whole chain costs
  mechir run NAME --help                    the options of one, and examples
  mechir run my_heads.py --collection DIR   an experiment of your own"""
CITED = re.compile(r" \((?=[^)]*\d{4})[^)]*\)")
"""The papers in a sentence, which the list of experiments leaves out."""


class Experiments(Group):
    """`mechir run [EXPERIMENT] ...`: each experiment is a command whose options are its fields."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Inserts the default experiment where none is named."""
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            from mechir.catalog import default_experiment

            args = [default_experiment().name, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The experiments that come with mechir."""
        from mechir.catalog import experiments

        return list(experiments())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of one experiment; one that cannot be loaded is listed with the error that running it raises."""
        from mechir.catalog import experiments, load_experiment

        try:
            return _experiment_command(load_experiment(cmd_name), cmd_name)
        except MechirError as error:
            if cmd_name not in experiments():
                raise
            failed, settings = error, {"ignore_unknown_options": True, "allow_extra_args": True}

        def refuse() -> None:
            raise failed

        return click.Command(cmd_name, settings, refuse, short_help=str(failed), add_help_option=False)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the experiments that come with mechir, a section for each paper."""
        for paper, names in itertools.groupby(self.list_commands(ctx), lambda name: name.partition("/")[0]):
            listed = [(name, _uncited(self.get_command(ctx, name).get_short_help_str())) for name in names]
            with formatter.section(paper):
                formatter.write_dl(listed)


def _uncited(sentence: str) -> str:
    return CITED.sub("", sentence).replace("?.", "?")


@click.command(cls=Experiments, subcommand_metavar="[EXPERIMENT] [OPTIONS]", options_metavar="", epilog=EXAMPLES)
def run() -> None:
    """Runs EXPERIMENT, or what is missing of it.

    EXPERIMENT: a name, or a .py file of your own (mechir new experiment NAME writes one). By default it is the whole
    chain, from matching heads to BM25: `mechir run --limit-queries 10` takes its options.
    """


def _experiment_command(experiment: type[Experiment], called: str) -> click.Command:
    """The command of an experiment; `called`: its name or file as it was given, for the examples of its help."""
    fields = experiment.options()

    def start(collection: str | tuple[str, ...] | None, **given: Any) -> None:
        settings = {name: given[name] if name == "seed" else given.pop(name) for name in fields}
        settings = {
            name: fields[name].separator.join(value) if isinstance(value, tuple) else value
            for name, value in settings.items()
        }
        several = (collection,) if isinstance(collection, str) else collection or (None,)
        _run(experiment.chosen(**settings), several, **given)

    repeated = "; may be repeated, one row each" if experiment.across is not None else ""
    if experiment.runs_on == "groups":
        repeated = "; several in groups: in:PATH, out:PATH"
    contrasts = _DIAGNOSTIC if experiment.runs_on == "contrasts" else ()
    general = shared(*MODEL, *collection_option(repeated), *contrasts, *_POOL, *_STORE)
    text = inspect.getdoc(experiment) or ""
    examples = "\n".join(f"  mechir run {called} {example}".rstrip() for example in experiment.examples or BY_DEFAULT)
    declare = click.command(
        experiment.name, cls=Command, help=text, short_help=text.split("\n")[0], epilog=f"\b\nExamples:\n{examples}"
    )
    command = declare(general(start))
    everywhere = {option.name for option in command.params}
    if taken := [name for name in fields if name in everywhere - {"seed"}]:  # one --seed is for all that is drawn
        name = experiment.name
        raise MechirError(f"'{name}' has an option '{taken[0]}', which means the pool's everywhere: rename it.")
    command.of_experiment = tuple(fields)
    command.params[:0] = [_option(declared) for declared in fields.values() if declared.name not in everywhere]
    return command


def _option(declared: Option) -> click.Option:
    kind = declared.kind if declared.item is None else str
    default = declared.written(declared.default)
    typed: dict[str, Any] = {"is_flag": True} if kind is bool else {"type": kind}
    if declared.repeated:
        default, typed = list(map(str, declared.default)), typed | {"multiple": True}
    written = str(declared.written(declared.default))
    shown = written if len(written) < LONG else written.replace(",", ", ")  # which lines can break
    says_it = kind is bool or (not written and re.search(r"\bdefault\b|\bfound by the run\b", declared.help))
    sentence = declared.help if says_it else f"{declared.help} [default: {shown or 'none'}]"
    return Flag([f"--{declared.name.replace('_', '-')}"], default=default, help=sentence, **typed)


def _run(
    experiment: Experiment,
    collections: Sequence[str | None],
    model: str | None,
    device: str | None,
    dtype: str,
    relevant_label: str | None,
    registry: Path,
    shard: str,
    fresh: bool,
    dry_run: bool,
    quiet: bool,
    **rest: Any,
) -> None:
    from mechir import collection as open_collection
    from mechir import running
    from mechir.encoder.opening import load
    from mechir.engine import Allocation, Local
    from mechir.shard import Shard

    rules = rules_of(rest)
    contrasts: dict[str, Any] = {key: rest.pop(key) for key in ("diagnostic", "data", "fillers", "swap") if key in rest}
    part, engine = Shard.parse(shard), engine_of(rest, device)
    if isinstance(engine, Allocation) and not dry_run:
        engine.join(registry)
    if collections == (None,) and contrasts.get("data") is None and rest["limit_queries"] is None:
        defaults: dict[str, int] = {"limit_queries": DEFAULT_QUERIES} | dict(experiment.embedded)
        rest |= {name: n for name, n in defaults.items() if rest[name] is None}
        taken, n = defaults["limit_queries"], len(open_collection("embedded").queries)
        say(f"The first {taken} of {n} queries; --limit-queries {n} takes all." if taken < n else f"All {n} queries.")
    is_here = engine is None or (dry_run and isinstance(engine, Local))
    here = device if is_here else "cpu"  # where workers compute, this process only reads
    reranker = load(model, dtype=dtype, device=here, relevant_label=relevant_label)
    sources = _sources(experiment, collections, rules, contrasts, rest, reranker)  # all, before any work
    done = []
    for source, pool in sources:
        if dry_run:
            print_plan(experiment, reranker.limited(pool.max_length), source, pool, registry, engine)
            continue
        where: dict[str, Any] = {"registry": registry, "shard": part, "engine": engine, "watch": watch_of(quiet)}
        stored = running.run(experiment, reranker, source, pool=pool, fresh=fresh, **where)
        n, units = len(stored.done()), stored.record["units"]
        if n < units:
            click.echo(f"Run {stored.id}: {n} of {units} units are done, the rest is not of this shard.")
            continue
        print_summary(stored)
        done.append(stored)
    if len(done) > 1:
        _print_across(experiment, done)
    if done and experiment.reports:
        from mechir.reporting.report import report

        click.echo(f"Report: {report(registry=registry)}")
        print_answers(registry, done[-1].record)


def _print_across(experiment: Experiment, done: Sequence[Any]) -> None:
    import pandas as pd

    from mechir.registry.names import named, on, shown
    from mechir.views import tables

    records = [stored.record for stored in done]
    ids, names = [record["identity"]["collection"] for record in records], shown(map(named, records))
    rows = [id_ if ids.count(id_) == 1 else on(record, names) for id_, record in zip(ids, records, strict=True)]
    summaries = [stored.summary.assign(collection=row) for row, stored in zip(rows, done, strict=True)]
    assert experiment.across is not None  # several collections are refused otherwise
    click.echo(f"\n{tables.summary(experiment.across(pd.concat(summaries, ignore_index=True)))}")


def _sources(
    experiment: Experiment,
    names: Sequence[str | None],
    rules: dict[str, Any],
    contrasts: dict[str, Any],
    pool: dict[str, Any],
    model: HookedModel,
) -> list[tuple[Any, Any]]:
    """The sources to run on, each with its pool; collections in groups are one source."""
    from mechir.collection_groups import collections, in_group
    from mechir.material import Pool

    given = [name for name in names if name is not None]
    if experiment.runs_on == "groups" and (len(given) > 1 or any(map(in_group, given))):
        return [(collections(given, **rules), Pool(**pool))]
    sources = [_source(name, rules, contrasts, pool, model) for name in names]
    contents = [(source.id, source.hash) for source, _ in sources]
    if twice := sorted({name for name, hash_ in contents if contents.count((name, hash_)) > 1}):
        raise MechirError(f"--collection names '{twice[0]}' more than once: give each once, under a name of its own.")
    return sources


def _source(
    collection: str | None, rules: dict[str, Any], contrasts: dict[str, Any], pool: dict[str, Any], model: HookedModel
) -> tuple[Any, Any]:
    """A collection with its pool, or a diagnostic set, which is sampled already."""
    from mechir import collection as open_collection
    from mechir.diagnostic_sets import diagnostic
    from mechir.material import Pool
    from mechir.perturbed import FILLERS

    if not contrasts:
        return open_collection(collection or "embedded", **rules), Pool(**pool)
    data = contrasts["data"]
    if data is not None:
        if collection is not None:
            raise MechirError("--data reads a published set and --collection perturbs a collection: give one of them.")
        if rules:
            rule = f"--{next(iter(rules)).replace('_', '-')}"
            raise MechirError(f"--data reads a published set without judgments: leave {rule} out.")
        if not data.is_dir():
            raise MechirError(f"There is no directory '{data}': give that of the published files.")
    source = data or open_collection(collection or "embedded", **rules)
    fillers, sample = contrasts["fillers"] or FILLERS, {name: pool[name] for name in pool if name != "max_length"}
    name = contrasts["diagnostic"] or "tfc1"
    sampled = diagnostic(name, source, fillers=fillers, swap=contrasts["swap"], model=model, **sample)
    return sampled, Pool(max_length=pool["max_length"])
