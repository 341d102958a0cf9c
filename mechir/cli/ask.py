"""Commands that read the registry: `show`, `findings`, `report`, `export`, `delete`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from mechir.cli.options import COUNT, PATH, REGISTRY, Command, option, shared
from mechir.errors import MechirError
from mechir.reranker import in_words

EXAMPLES = {
    "show": """\b
Examples:
  mechir show                    every run
  mechir show 3fa9 --all         all of the table of the run that begins so""",
    "report": """\b
Examples:
  mechir report
  mechir report --registry mechir-registry --out report.html""",
    "delete": """\b
Examples:
  mechir delete 3fa9 --reason "measured on the wrong collection\"""",
    "findings": """\b
Examples:
  mechir findings --site h8.1
  mechir findings --role matching --label lexical --holds
  mechir findings --causal --format csv > findings.csv""",
    "export": """\b
Examples:
  mechir export links.tex --links
  mechir export chart.pdf --run 3fa9
  mechir export findings.csv --role matching""",
}
"""The end of the help of a command."""


def print_table(stored: Any, *, whole: bool = False) -> None:
    """Prints the summary of a finished run: what fits the terminal, or all of it."""
    from mechir.catalog import shown
    from mechir.views import tables

    summary = stored.summary
    if whole:
        click.echo(tables.summary(summary))
        return
    printed = shown(stored.record["identity"]["experiment"], summary)
    kinds = [part for _, part in printed.groupby("kind", sort=False)] if "kind" in printed else [printed]
    lines = max((tables.LINES + 1) // max(len(kinds), 1) - 1, 4)  # a line stands between them
    parts = [tables.fitted(part, tables.terminal_width(), lines) for part in kinds or [printed]]
    click.echo("\n\n".join(part.text for part in parts))
    n = sum(part.rows for part in parts)
    left_out = [name for name in dict.fromkeys(name for part in parts for name in part.left_out)]
    left_out += [name for name in summary if name not in printed]
    if n < len(summary) or left_out:
        without = f", without {len(left_out)} columns" if left_out else ""
        click.echo(f"{n} of {len(summary)} rows{without}; all: mechir show {stored.id} --all")


def print_summary(stored: Any, *, whole: bool = False) -> None:
    """Prints the summary of a finished run and its provenance; `whole`: every row and column."""
    from mechir import left_out
    from mechir.encoder.reading import Reading
    from mechir.registry.names import model_name
    from mechir.registry.runs import ANSWERS
    from mechir.views.tables import terminal_width

    record = stored.record
    identity = record["identity"]
    answer = [textwrap.fill(sentence, terminal_width()) for sentence in stored.answer[:ANSWERS]]
    if answer:
        click.echo("\n".join(answer) + "\n")
    print_table(stored, whole=whole)
    noun = "contrasts" if "fillers" in identity else "pairs"
    fingerprint = identity.get("model_fingerprint", "")[:12]
    subject = f"{model_name(record['model'])} ({fingerprint}) on {identity['collection']}"
    click.echo(f"{subject}: {record['queries']} queries, {record['pairs']} {noun}")
    if record.get("skipped"):
        reasons = stored.skipped["reason"]
        click.echo(f"{len(reasons)} pairs gave no contrast, e.g.: {reasons.iloc[0]} (all: skipped.parquet)")
    certificate = record["certificate"]
    lines = [*_quality(record.get("quality", [])), *left_out.sentences(record.get("left_out", {}))]
    lines.append(
        f"parity with Hugging Face on {certificate['n_pairs']} pairs: {in_words(certificate)}; "
        f"{record['truncated_documents']} documents truncated"
    )
    lines += Reading.of_record(record["reading"]).lines() if "reading" in record else ()  # older runs lack it
    lines += _several(record)
    in_terminal = sys.stdout.isatty()  # elsewhere a line stays one line
    click.echo("\n".join(textwrap.fill(line, terminal_width()) if in_terminal else line for line in lines))
    click.echo(f"Run {stored.id}: {stored.path}\nchart: {stored.path / 'chart.html'}")
    for sentence in answer[:1]:  # what was printed first has left the screen
        click.echo(sentence)


def print_answers(registry: Path, record: Mapping[str, Any]) -> None:
    """Prints the report's answers on the model and collection of a run in words, and the links."""
    from mechir.registry.links import links
    from mechir.registry.names import named
    from mechir.reporting.report import gathered
    from mechir.reporting.sentences import as_text
    from mechir.views.tables import fitted, terminal_width

    width = terminal_width()
    about = record["identity"]["model_fingerprint"], named(record).id
    for section in gathered(registry)["sections"]:
        if (section["fingerprint"], section["id"]) != about:
            continue
        for answer in section["answers"]:
            text = " ".join(as_text(sentence) for sentence in answer["sentences"])
            click.echo(f"\n{answer['question']}\n{textwrap.fill(text, width)}")
        table = links(model=about[0], collection=section["collection"], registry=registry)
        columns = ["site", "links", "exploratory", "effect", "low", "high", "unit", "p_all", "edges", "conflicts"]
        linked = table[[name for name in columns if name in table]].assign(site=table["site"].astype(str))
        click.echo(f"\n{fitted(linked, width).text}")
        click.echo(f"\n{textwrap.fill(as_text(section['lead']), width)}")


def _several(record: Mapping[str, Any]) -> Iterator[str]:
    """A sentence where units were computed in more than one way: on several devices, hosts or thread counts."""
    named = {"devices": "devices", "hosts": "hosts", "dtypes": "number types", "thread_counts": "thread counts"}
    parts = [
        f"{len(record[name])} {words} ({', '.join(map(str, record[name]))})"
        for name, words in named.items()
        if len(record.get(name, ())) > 1
    ]
    if parts:
        yield f"units were computed on {' and '.join(parts)}; an effect never mixes two"


def _quality(means: list[dict[str, Any]]) -> Iterator[str]:
    """Sentences on measures in whose mean not all queries count, with the mean over all."""
    for row in means:
        if row["n"] < row["queries"]:
            name = f"{row['collection']}: " if row["collection"] else ""
            mean = "no mean" if row["value"] is None else f"{row['value']:.3f}"
            counts = f"over the {row['n']} of {row['queries']} queries that count"
            zeros = f"with the others as 0 it is {row['over_all']:.3f}"
            yield f"{name}{row['measure']} of the intact model is {mean} {counts}; {zeros}"


@click.command(cls=Command, epilog=EXAMPLES["show"])
@click.argument("run_id", metavar="RUN", required=False)
@option("--all", "whole", is_flag=True, help="Every row and column of its table.")
@REGISTRY
def show(run_id: str | None, whole: bool, registry: Path) -> None:
    """Prints the table of RUN (the beginning of its id is enough), or lists the runs."""
    from mechir.registry import names, runs

    if run_id is not None:
        print_summary(runs.find_run(registry, run_id), whole=whole)
        return
    listed = runs.runs(registry)
    if not listed:
        raise MechirError(f"'{registry}' holds no run yet: write `mechir run`, or --registry DIR.")
    records = [stored.record for stored in listed]
    collections = names.shown(map(names.named, reversed(records)))
    for stored, record in zip(listed, records, strict=True):
        click.echo(
            f"{stored.id}  {record['identity']['experiment']:<28} {len(stored.done())}/{record['units']} units  "
            f"{names.model_name(record['model'])} on {names.on(record, collections)}"
        )


FILTERS = (
    option(
        "--role",
        help="What it does: matching, soft-tf, idf, query-context, scoring, no-op or relevance-neuron.",
    ),
    option("--term", help="The part of BM25: tf, idf, length or saturation."),
    option("--site", help="The component, such as h8.1, n5.1203, embed.u0 or 'doc<-query'."),
    option("--model", help="A name, or the beginning of a fingerprint."),
    option("--collection", help="A collection's id, folder/id, or the beginning of its hash."),
    option("--measure", help="What was measured, as a table writes it: 'nDCG@10 without'."),
    option("--causal/--not-causal", default=None, help="Only where the component was changed, or was not."),
    option("--min-effect", type=float, help="|value| at least this, in the measure's own unit."),
    option("--corrected-p", type=float, metavar="P", help="p_corrected below this, from 0 to 1."),
    option("--label", help="Of what kind, such as lexical or semantic."),
)
"""Options that select findings."""
HOLDS = option("--holds/--holds-not", default=None, help="Only the newest that hold, or that do not.")
PRINTED = 20
"""Findings that a terminal shows by default."""


@click.command(cls=Command, epilog=EXAMPLES["findings"])
@shared(*FILTERS)
@HOLDS
@option("--limit", type=COUNT, help=f"The first N [default: {PRINTED} in a table, all in csv and json].")
@option(
    "--format",
    "style",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="What is printed.",
)
@REGISTRY
def findings(registry: Path, style: str, limit: int | None, holds: bool | None, **filters: Any) -> None:
    """Prints the findings on components, the largest of each measure first; csv and json with every column."""
    from mechir.registry.findings import VIEW
    from mechir.registry.names import model_name
    from mechir.registry.queries import selected
    from mechir.views import tables

    whole = selected(registry, filters, holds)
    rows = whole.head(limit or (PRINTED if style == "table" else len(whole)))
    if style == "csv":
        click.echo(rows.to_csv(index=False), nl=False)
    elif style == "json":
        click.echo(rows.to_json(orient="records", lines=True, force_ascii=False), nl=False)
    else:
        shown = rows[VIEW].assign(model=rows["model"].map(model_name))
        click.echo(tables.fitted(shown, tables.terminal_width(), len(rows) + tables.LINES).text)
        more = f"; --limit {len(whole)} prints all" if len(rows) < len(whole) else ""
        shown = f"{len(rows)} of {len(whole)}" if more else f"{len(whole)}"
        click.echo(f"{shown} findings of {whole['run_id'].nunique()} runs{more}")


@click.command(cls=Command, epilog=EXAMPLES["report"])
@REGISTRY
@option("--out", type=PATH, metavar="FILE", help="The file [default: report.html in the registry].")
def report(registry: Path, out: Path | None) -> None:
    """Writes the contents of the registry as one HTML file that needs no network."""
    from mechir.reporting.report import report as write

    click.echo(f"Wrote {write(registry=registry, out=out)}")


@click.command(cls=Command, epilog=EXAMPLES["export"])
@click.argument("out", metavar="OUT")
@option("--run", "run_id", metavar="RUN", help="The table or the chart of this run, in the place of findings.")
@option("--links", is_flag=True, help="The table of links, in the place of findings.")
@option("--digits", type=click.IntRange(min=0), default=2, show_default=True, help="Decimals in a LaTeX table.")
@HOLDS
@shared(*FILTERS)
@REGISTRY
def export(out: str, run_id: str | None, links: bool, digits: int, registry: Path, **filters: Any) -> None:
    """Writes findings to OUT, by its suffix: .csv, .jsonl, .tex, or a folder, which is a dataset.

    With --run RUN the table of a run, or as .png, .svg or .pdf its chart; with --links the table of links.
    """
    from mechir.exporting import export as export_
    from mechir.exporting import refuse_unknown
    from mechir.registry.findings import VIEW
    from mechir.registry.links import links as links_
    from mechir.registry.queries import selected
    from mechir.registry.runs import find_run

    allowed = {"model", "collection"} if links else set() if run_id else filters.keys()
    if wrong := [name for name, value in filters.items() if value is not None and name not in allowed]:
        raise MechirError(f"--{wrong[0].replace('_', '-')} asks findings: leave out {'--links' if links else '--run'}.")
    refuse_unknown(out)
    if links and run_id:
        raise MechirError("--links and --run are two tables: give one of them.")
    if run_id:
        data: Any = find_run(registry, run_id)
    elif links:
        data = links_(model=filters["model"], collection=filters["collection"], registry=registry)
    else:
        data = selected(registry, {name: value for name, value in filters.items() if name != "holds"}, filters["holds"])
        data = data[VIEW] if out.endswith(".tex") else data
    click.echo(f"Wrote {export_(data, out, digits=digits)}")


@click.command(cls=Command, epilog=EXAMPLES["delete"])
@click.argument("run_id", metavar="RUN")
@option("--reason", required=True, help="Why: it stays where the run was.")
@REGISTRY
def delete(run_id: str, reason: str, registry: Path) -> None:
    """Deletes the rows of RUN and takes its findings back; the reason stays."""
    from mechir.registry import runs
    from mechir.registry.entries import delete_run

    run = runs.find_run(registry, run_id)
    delete_run(registry, run, reason)
    click.echo(f"Deleted run {run.id}; its findings no longer count.")
