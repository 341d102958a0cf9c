"""Commands that ask the registry: `show`, `findings`, `report`, `delete`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mechir.cli.options import REGISTRY
from mechir.errors import MechirError


def print_summary(stored: Any) -> None:
    """Prints the summary of a finished run and where it lies."""
    from mechir.experiment import shown
    from mechir.views import tables

    record, summary = stored.record, stored.summary
    identity = record["identity"]
    click.echo(tables.summary(printed := shown(identity["experiment"], summary)))
    if len(printed) < len(summary):
        click.echo(f"{len(printed)} of {len(summary)} rows; all: {stored.path / 'summary.parquet'}")
    what = "contrasts" if "fillers" in identity else "pairs"
    click.echo(f"{record['model']} on {identity['collection']}: {record['queries']} queries, {record['pairs']} {what}")
    if record.get("skipped"):
        skipped = stored.skipped
        click.echo(f"{len(skipped)} pairs gave none, e.g.: {skipped['reason'].iloc[0]} (all: skipped.parquet)")
    certificate = record["certificate"]
    click.echo(
        f"parity with Hugging Face on {certificate['n_pairs']} pairs: scores {certificate['score_cls_only']:.1e} "
        f"(relative), patterns {certificate['pattern']:.1e}; {record['truncated_documents']} documents truncated"
    )
    click.echo(f"Run {stored.id}: {stored.path}; chart: {stored.path / 'chart.html'}")


@click.command()
@click.argument("run_id", metavar="RUN", required=False)
@REGISTRY
def show(run_id: str | None, registry: Path) -> None:
    """Prints the table of RUN (the beginning of its id is enough), or lists the runs."""
    from mechir.registry import runs

    if run_id is not None:
        print_summary(runs.find_run(registry, run_id))
        return
    found = runs.runs(registry)
    if not found:
        raise MechirError(f"'{registry}' holds no run yet: write `mechir run`, or --registry DIR.")
    for stored in found:
        record = stored.record
        click.echo(
            f"{stored.id}  {record['identity']['experiment']:<28} {len(stored.done())}/{record['units']} units  "
            f"{record['model']} on {record['identity']['collection']}"
        )


SHOWN = [
    "site",
    "role",
    "term",
    "measure",
    "value",
    "low",
    "high",
    "unit",
    "p_corrected",
    "n_queries",
    "model",
    "collection",
]
"""The columns of the table; csv and json hold all."""


@click.command()
@click.option("--role", help="matching, soft-tf, idf, query-context, scoring, no-op or relevance-neuron.")
@click.option("--term", help="tf, idf, length or saturation.")
@click.option("--site", help="e.g. h8.1, n5.1203, embed.u0, 'doc<-query'.")
@click.option("--model", help="A name, or the beginning of a fingerprint.")
@click.option("--collection", help="A collection's id.")
@click.option("--measure", help="As it is written in the table.")
@click.option("--causal/--not-causal", default=None, help="Only where the component itself was changed, or was not.")
@click.option("--min-effect", type=float, help="|value| at least this, in the measure's own unit.")
@click.option("--corrected-p", type=float, help="p_corrected below this.")
@click.option("--format", "how", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@REGISTRY
def findings(registry: Path, how: str, **asked: Any) -> None:
    """Prints what the runs say of components; csv and json (a line each) with every column."""
    from mechir.registry.queries import matching
    from mechir.views import tables

    columns = {name: asked.pop(name) for name in ("role", "term", "site", "collection", "measure")}
    found = matching(registry, columns, **asked)
    if how == "csv":
        click.echo(found.to_csv(index=False), nl=False)
    elif how == "json":
        click.echo(found.to_json(orient="records", lines=True, force_ascii=False), nl=False)
    else:
        click.echo(tables.summary(found[SHOWN]))
        click.echo(f"{len(found)} findings of {found['run_id'].nunique()} runs")


@click.command()
@REGISTRY
@click.option("--out", type=click.Path(path_type=Path), help="The file [default: report.html in the registry].")
def report(registry: Path, out: Path | None) -> None:
    """Writes what the registry holds as one HTML file that needs no network."""
    from mechir.reporting.report import report as write

    click.echo(f"Wrote {write(registry=registry, out=out)}")


@click.command()
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
