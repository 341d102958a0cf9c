"""Commands that read and write files: `new`, `score`, `convert`, `fetch`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from mechir.cli.help import Group
from mechir.cli.options import COUNT, MODEL, PATH, Command, collection_option, option, rules_of, shared
from mechir.errors import MechirError

EXAMPLES = {
    "score": """\b
Examples:
  mechir score --out intact.run
  mechir score --mask "doc<-query@0-5" --ablate h1.1 --out cut.run
  mechir score --collection DIR --run bm25 --top-k 100 --out mechir.run""",
    "convert": """\b
Examples:
  mechir convert castorini/monobert-large-msmarco --out monobert-large""",
    "fetch": """\b
Examples:
  mechir fetch cross-encoder/ms-marco-MiniLM-L-12-v2
  mechir fetch beir/scifact/test""",
    "new": """\b
Examples:
  mechir new experiment my_heads
  mechir new experiment my_heads --folder analyses/mine""",
}
"""The end of the help of a command."""
SKELETON = Path(__file__).parent.parent / "data" / "skeleton"


@click.command(cls=Command, epilog=EXAMPLES["score"])
@option("--out", type=PATH, metavar="FILE", required=True, help="Where the TREC run goes.")
@shared(*MODEL, *collection_option())
@option(
    "--mask",
    multiple=True,
    help="A direction of attention that is cut, such as 'doc<-query@0-5' or 'doc<-query@h1.1'; may be repeated.",
)
@option(
    "--ablate",
    multiple=True,
    metavar="SITE",
    help="What is put to zero: h8.1, n5.1203, mlp3 or attn3; may be repeated.",
)
@option("--renormalise", is_flag=True, help="Mask before the softmax instead of after it.")
@option(
    "--readout", default="score", show_default=True, help="What is written: score (logits), log_p or p (of relevance)."
)
@option("--run", help="A TREC run whose documents are scored, by its file or its name in the collection.")
@option("--top-k", type=COUNT, help="Its first N documents of each query, or BM25's.")
@option("--per-grade", type=COUNT, help="At most N judged documents per grade and query [default: all].")
@option("--seed", type=int, default=0, show_default=True, help="Of draws, and of the order of tied scores.")
def score(
    model: str | None,
    collection: str | None,
    limit_queries: int | None,
    mask: tuple[str, ...],
    ablate: tuple[str, ...],
    renormalise: bool,
    readout: str,
    seed: int,
    out: Path,
    **more: Any,
) -> None:
    """Writes a TREC run of all judged pairs, or of the first of a run, intact or under masks and ablations."""
    from mechir import Ablate, Mask, left_out
    from mechir import collection as open_collection
    from mechir.atomic import refuse_unwritable
    from mechir.encoder.opening import load
    from mechir.interventions import RENORMALISED
    from mechir.material import readable
    from mechir.methods.ranking import refuse_spaces, write_trec_run
    from mechir.provenance import certificate

    if renormalise and not mask:
        raise MechirError("--renormalise says how a mask cuts, and there is none: give --mask, or leave it out.")
    refuse_unwritable(out)  # before anything is scored
    masks = dict.fromkeys(Mask.parse(text, renormalise=renormalise) for text in mask)
    ablated = dict.fromkeys(Ablate(site) for site in ablate)
    opened = open_collection(collection or "embedded", **rules_of(more))
    pool = {name: more.pop(name) for name in ("run", "top_k", "per_grade")}
    sample = opened.sample(limit_queries=limit_queries, easy_negatives=0, seed=seed, **pool)
    refuse_spaces(sample.pairs)
    reranker = load(model, **more)  # the other options of `MODEL`
    sample = readable(reranker, sample, opened)
    pairs = sample.pairs
    certificate(reranker, pairs)
    scores = reranker.score(pairs, [*masks, *ablated], readout=readout)
    names = [str(cut).removesuffix(RENORMALISED) for cut in masks] + ["renormalised"] * renormalise
    names += [str(site) for ablation in ablated for site in ablation.sites]
    write_trec_run(out, pairs, scores.tolist(), tag="".join("-".join(["mechir", readout, *names]).split()), seed=seed)
    click.echo(f"Wrote {out}: {len(pairs)} pairs by {readout}")
    for line in left_out.sentences(left_out.by_reason(sample.left_out)):
        click.echo(line)


@click.command(cls=Command, epilog=EXAMPLES["convert"])
@click.argument("model")
@option("--out", type=PATH, metavar="DIR", required=True, help="A directory that does not exist yet.")
def convert(model: str, out: Path) -> None:
    """Turns a pickled checkpoint (a directory or a hub name) into safetensors, once."""
    from mechir.encoder.convert import convert as convert_

    record = convert_(model, out)
    click.echo(f"Wrote {out}: {record['tensors']} tensors, sha256 {record['safetensors_sha256']}")


@click.command(cls=Command, epilog=EXAMPLES["fetch"])
@click.argument("name", metavar="MODEL_OR_DATASET")
def fetch(name: str) -> None:
    """Downloads a hub model or an ir_datasets collection where there is a network, for nodes that have none."""
    from mechir.encoder.convert import fetch_model
    from mechir.encoder.default import HUB
    from mechir.irds import fetch_dataset, is_dataset

    if is_dataset(name):
        click.echo(fetch_dataset(name))
    elif name == HUB:
        fetch_model(name)
        click.echo(f"'{name}' is in the cache: the embedded model finds it there.")
    else:
        click.echo(fetch_model(name))


@click.group(cls=Group, epilog=EXAMPLES["new"])
def new() -> None:
    """Writes files to start from."""


@new.command(cls=Command, epilog=EXAMPLES["new"])
@click.argument("name")
@option("--folder", type=PATH, metavar="DIR", default=".", show_default=True, help="Where they are put.")
def experiment(name: str, folder: Path) -> None:
    """Writes NAME.py, an experiment with one option and one measure of its own, and its test, test_NAME.py.

    In a checkout that has a folder tests/ the test goes there, elsewhere beside the experiment.
    """
    from mechir.analyses import class_name

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise MechirError(f"'{name}' cannot name a Python file: write lower-case letters, digits and _, e.g. my_heads.")
    if not folder.is_dir():
        raise MechirError(f"There is no directory '{folder}': give one that exists with --folder.")
    above = (path for path in (folder.resolve(), *folder.resolve().parents) if (path / ".git").exists())
    tests = next((path / "tests" for path in above if (path / "tests").is_dir()), folder)
    test, path = tests / f"test_{name}.py", os.path.relpath(folder / f"{name}.py", tests)
    files = {folder / f"{name}.py": "experiment.txt", test: "test.txt"}
    if there := [file for file in files if file.exists()]:
        raise MechirError(f"'{there[0]}' exists already: take another name, or remove it.")
    words = {
        "name": name,
        "path": Path(path).as_posix(),
        "class_name": class_name(name),
        "title": name.replace("_", " ").capitalize(),
    }
    for file, template in files.items():
        file.write_text((SKELETON / template).read_text(encoding="utf-8").format(**words), encoding="utf-8")
        click.echo(f"Wrote {file}")
    click.echo(f"Run it: mechir run {folder / name}.py; test it: pytest {test}")
