"""Commands that ask the registry: `show`, `findings`, `report`, `export`, `delete`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mechir.cli.options import REGISTRY, Command, shared
from mechir.errors import MechirError
from mechir.reranker import score_parity


def reading_lines(record: dict[str, Any]) -> list[str]:
    """How the model of a run was read, in words; nothing of a run that is older than this record."""
    from mechir.encoder.reading import Reading

    return list(Reading.of(record["reading"]).lines()) if "reading" in record else []


def print_summary(stored: Any) -> None:
    """Prints the summary of a finished run and where it lies."""
    from mechir import left_out
    from mechir.catalog import shown
    from mechir.views import tables

    record, summary = stored.record, stored.summary
    identity = record["identity"]
    printed = shown(identity["experiment"], summary)
    kinds = printed.groupby("kind", sort=False) if "kind" in printed else [("", printed)]
    click.echo("\n\n".join(tables.summary(part) for _, part in kinds) if len(printed) else tables.summary(printed))
    if len(printed) < len(summary):
        click.echo(f"{len(printed)} of {len(summary)} rows; all: {stored.path / 'summary.parquet'}")
    what = "contrasts" if "fillers" in identity else "pairs"
    click.echo(f"{record['model']} on {identity['collection']}: {record['queries']} queries, {record['pairs']} {what}")
    if record.get("skipped"):
        skipped = stored.skipped
        click.echo(f"{len(skipped)} pairs gave none, e.g.: {skipped['reason'].iloc[0]} (all: skipped.parquet)")
    for line in (*_quality(record.get("quality", [])), *left_out.sentences(record.get("left_out", {}))):
        click.echo(line)
    certificate = record["certificate"]
    click.echo(
        f"parity with Hugging Face on {certificate['n_pairs']} pairs: scores {score_parity(certificate):.1e} "
        f"(relative), patterns {certificate['pattern']:.1e}; {record['truncated_documents']} documents truncated"
    )
    for line in reading_lines(record):
        click.echo(line)
    click.echo(f"Run {stored.id}: {stored.path}; chart: {stored.path / 'chart.html'}")


def _quality(means: list[dict[str, Any]]) -> Iterator[str]:
    """How many queries count where not all do, and what the mean over all is."""
    for one in means:
        if one["n"] < one["queries"]:
            name = f"{one['collection']}: " if one["collection"] else ""
            mean = "no mean" if one["value"] is None else f"{one['value']:.3f}"
            yield (
                f"{name}{one['measure']} of the intact model is {mean} over the {one['n']} of {one['queries']} queries "
                f"that count; with the others as 0 it is {one['over_all']:.3f}"
            )


@click.command(cls=Command)
@click.argument("run_id", metavar="RUN", required=False)
@REGISTRY
def show(run_id: str | None, registry: Path) -> None:
    """Prints the table of RUN (the beginning of its id is enough), or lists the runs."""
    from mechir.registry import names, runs

    if run_id is not None:
        print_summary(runs.find_run(registry, run_id))
        return
    found = runs.runs(registry)
    if not found:
        raise MechirError(f"'{registry}' holds no run yet: write `mechir run`, or --registry DIR.")
    records = [stored.record for stored in found]
    called = names.shown(map(names.named, reversed(records)))
    for stored, record in zip(found, records, strict=True):
        click.echo(
            f"{stored.id}  {record['identity']['experiment']:<28} {len(stored.done())}/{record['units']} units  "
            f"{record['model']} on {names.on(record, called)}"
        )


ASKED = (
    click.option("--role", help="matching, soft-tf, idf, query-context, scoring, no-op or relevance-neuron."),
    click.option("--term", help="tf, idf, length or saturation."),
    click.option("--site", help="e.g. h8.1, n5.1203, embed.u0, 'doc<-query'."),
    click.option("--model", help="A name, or the beginning of a fingerprint."),
    click.option("--collection", help="A collection's id, folder/id, or the beginning of its hash."),
    click.option("--measure", help="As it is written in the table."),
    click.option("--causal/--not-causal", default=None, help="Only where the component was changed, or was not."),
    click.option("--min-effect", type=float, help="|value| at least this, in the measure's own unit."),
    click.option("--corrected-p", type=float, help="p_corrected below this."),
)
"""What may be asked of findings."""


def _asked(registry: Path, asked: dict[str, Any]) -> Any:
    """The findings that match the options of `ASKED`, sites as text."""
    from mechir.registry.queries import matching

    columns = {name: asked.pop(name) for name in ("role", "term", "site", "collection", "measure")}
    return matching(registry, columns, **asked)


@click.command(cls=Command)
@shared(*ASKED)
@click.option("--format", "how", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@REGISTRY
def findings(registry: Path, how: str, **asked: Any) -> None:
    """Prints what the runs say of components; csv and json (a line each) with every column."""
    from mechir.registry.findings import VIEW
    from mechir.views import tables

    found = _asked(registry, asked)
    if how == "csv":
        click.echo(found.to_csv(index=False), nl=False)
    elif how == "json":
        click.echo(found.to_json(orient="records", lines=True, force_ascii=False), nl=False)
    else:
        click.echo(tables.summary(found[VIEW]))
        click.echo(f"{len(found)} findings of {found['run_id'].nunique()} runs")


@click.command(cls=Command)
@REGISTRY
@click.option("--out", type=click.Path(path_type=Path), help="The file [default: report.html in the registry].")
def report(registry: Path, out: Path | None) -> None:
    """Writes what the registry holds as one HTML file that needs no network."""
    from mechir.reporting.report import report as write

    click.echo(f"Wrote {write(registry=registry, out=out)}")


@click.command(cls=Command)
@click.argument("out", metavar="OUT")
@click.option("--run", "run_id", metavar="RUN", help="The table or the chart of this run, in the place of findings.")
@click.option("--links", is_flag=True, help="The table of links, in the place of findings.")
@click.option("--digits", type=click.IntRange(min=0), default=2, show_default=True, help="Decimals in a LaTeX table.")
@shared(*ASKED)
@REGISTRY
def export(out: str, run_id: str | None, links: bool, digits: int, registry: Path, **asked: Any) -> None:
    """Writes findings to OUT, by its suffix: .csv, .jsonl, .tex, or a folder, which is a dataset.

    With --run RUN the table of a run, or as .png, .svg or .pdf its chart; with --links the table of links.
    """
    from mechir.exporting import export as export_
    from mechir.registry.findings import VIEW
    from mechir.registry.links import links as links_
    from mechir.registry.runs import find_run

    own = {"model", "collection"} if links else set() if run_id else asked.keys()
    if wrong := [name for name, value in asked.items() if value is not None and name not in own]:
        raise MechirError(f"--{wrong[0].replace('_', '-')} asks findings: leave out {'--links' if links else '--run'}.")
    if links and run_id:
        raise MechirError("--links and --run are two tables: give one of them.")
    if run_id:
        what: Any = find_run(registry, run_id)
    elif links:
        what = links_(model=asked["model"], collection=asked["collection"], registry=registry)
    else:
        what = _asked(registry, asked)
        what = what[VIEW] if out.endswith(".tex") else what
    click.echo(f"Wrote {export_(what, out, digits=digits)}")


@click.command(cls=Command)
@click.argument("run_id", metavar="RUN")
@click.option("--reason", required=True, help="Why: it stays where the run was.")
@REGISTRY
def delete(run_id: str, reason: str, registry: Path) -> None:
    """Deletes the rows of RUN and takes its findings back; the reason stays."""
    from mechir.registry import runs
    from mechir.registry.entries import delete_run

    run = runs.find_run(registry, run_id)
    delete_run(registry, run, reason)
    click.echo(f"Deleted run {run.id}; its findings no longer count.")
