"""What is misspelt: one sentence with what was given, what is known or closest, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


PAIRS = [("tank", "a tank of water")]
PYTHON: list[tuple[Callable[[Any], Any], str]] = [
    (lambda m: mi.load("embeded"), r"Cannot get 'embeded' .*; the model that ships is 'embedded'"),
    (lambda m: mi.load("./modl"), r"There is no directory './modl': .* on the hub; there is 'model'"),
    (lambda m: mi.collection("embeded"), r"'embeded' is neither .*: the closest ids are 'embedded'"),
    (lambda m: mi.collection("my_data"), r"'my_data' is neither .*; there is 'mydata'"),
    (lambda m: mi.collection("./mydat"), r"There is no directory './mydat': .*; there is 'mydata'"),
    (lambda m: mi.run("vast2025/atention_contrast", m, TOY), r": the closest are 'vast2025/attention_contrast'"),
    (lambda m: mi.run("joint/cut", m, TOY, site="h1.1"), r"has no option 'site': it takes sites, .*; the closest is 'sites'"),
    (lambda m: mi.run("joint/cut", m, TOY, limit_query=3), r"has no option 'limit_query': choose the pairs by pool=mechir.Pool\(limit_queries=...\)"),
    (lambda m: mi.collection(TOY).pairs(limit_query=3), r"A pool has no option 'limit_query': it takes per_grade, .*; the closest is 'limit_queries'"),
    (lambda m: mi.collection(TOY).pairs(run="bm52"), r"There is no run file 'bm52', and 'toy' has none of its own: give the path of one"),
    (lambda m: mi.diagnostic("tfc11", TOY), r"Unknown diagnostic 'tfc11': the closest are 'tfc1'"),
    (lambda m: mi.diagnostic("tfc1", TOY, limit_query=3), r"A pool has no option 'limit_query': .* the closest is 'limit_queries'"),
    (lambda m: mi.Mask("dok<-query"), r"Unknown segment 'dok': the closest is 'doc', of cls, query, sep1, doc, sep2, pad, system, instruction, suffix, decoder, all"),
    (lambda m: mi.Mask("doc<-qury|cls"), r"Unknown segment 'qury' in 'qury\|cls': the closest is 'query'"),
    (lambda m: mi.Mask("doc<-query@1,1"), r"'@1,1' names layer 1 twice: name it once, or a head as @h1\.1"),
    (lambda m: mi.Mask("doc<-query@0-3,2"), r"'@0-3,2' names layer 2 twice"),
    (lambda m: mi.Ablate("head1.1"), r"Cannot read 'head1.1' as a site: write h8.1 \(head\), n5.1203 \(neuron\), mlp3"),
    (lambda m: m.score(PAIRS, do="h1.1"), r"'h1.1' is no intervention: write e.g. Ablate\('h1.1'\)"),
    (lambda m: m.score(PAIRS, do=mi.Head(1, 1)), r"Head\(1, 1\) is no intervention: write e.g. Ablate\('h1.1'\)"),
    (lambda m: m.score(PAIRS, do=[mi.Ablate("h1.1"), "D<-Q"]), r"'D<-Q' is no intervention: write e.g. Mask\('doc<-query'\)"),
    (lambda m: m.score(PAIRS, do="dog"), r"'dog' is no intervention: write e.g. Mask\('doc<-query'\) or Ablate"),
    (lambda m: m.score(PAIRS, do=mi.Mask), r"write e.g. Mask\(...\) or Ablate"),
    (lambda m: m.score(PAIRS, do={"cut": mi.Ablate("h1.1")}), r"do= is a mapping: give one intervention or a list here"),
    (lambda m: m.score(PAIRS, readout="scor"), r"Unknown readout 'scor': write one of score, log_p, p"),
    (lambda m: mi.sweep(m, PAIRS, [mi.Ablate("h1.1")]), r"sweep takes interventions by name: write do=\{'cut'"),
    (lambda m: mi.means(m, PAIRS, hooks=("attn.hook_zz",)), r"Unknown hook 'attn.hook_zz': the closest of attn.hook_z, .* is 'attn.hook_z'"),
    (lambda m: mi.samples(m, PAIRS, hooks=("mlp.hook_pots",)), r"Unknown hook 'mlp.hook_pots': .* is 'mlp.hook_post'"),
    (lambda m: m.run_with_cache(PAIRS[0], names_filter="blocks.1.attn.hook_patern"), r"Unknown hook 'blocks.1.attn.hook_patern': the closest are 'blocks.1.attn.hook_pattern'"),
    (lambda m: m.run_with_hooks(PAIRS[0], fwd_hooks=[("blocks.1.hook_mlp_ot", print)]), r"Unknown hook 'blocks.1.hook_mlp_ot': the closest are 'blocks.1.hook_mlp_out'"),
    (lambda m: m.run_with_cache(PAIRS[0])[1]["patern", 1], r"There is no activation \('patern', 1\): the closest are .*, or in short 'pattern'"),
    (lambda m: mi.run("vast2024/importance", m, TOY, relevant="tyo:1"), r"Cannot read relevant='tyo:1': .*, where NAME is toy"),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "message"), PYTHON, ids=range(len(PYTHON)))
def test_python_says_what_is_known(mistake: Callable[[Any], Any], message: str, toy: HookedEncoder) -> None:
    for folder in ("model", "mydata"):
        Path(folder).mkdir()
    with pytest.raises(MechirError, match=message) as caught:
        mistake(toy)
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said and not re.search(r"[a-z]\. [A-Z]", said.replace("e.g. ", ""))


COMMANDS: list[tuple[list[str], str]] = [
    (["shwo"], "No such command 'shwo': the closest are 'show', 'score', 'new'; mechir --help lists all."),
    (["new", "experimnt", "x"], "No such command 'experimnt': the closest are 'experiment'; mechir new --help lists all."),
    (["run", "joint/cut", "--limit-query", "3"], "No such option '--limit-query': the closest are '--limit-queries', "),
    (["export", "x.csv", "--link"], "No such option '--link': the closest are '--links', "),
    (["export", "links.x"], "Cannot export to 'links.x': write .csv, .jsonl, .tex or a folder for a table, "),
    (["run", "vast2025/atention_contrast"], "Unknown experiment 'vast2025/atention_contrast': the closest are 'vast2025/attention_contrast', "),
    (["findings", "--role", "maching"], "Unknown role 'maching': the closest are 'matching', "),
    (["findings", "--format", "cvs"], "Invalid value for '--format': 'cvs' is not one of 'table', 'csv', 'json'; mechir findings --help says what is taken."),
    (["score"], "Missing option '--out'; mechir score --help says what is taken."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=[" ".join(one) for one, _ in COMMANDS])
def test_the_command_line_says_it_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *arguments, defaults=True)
    assert (code, out) == (2, "") and err.startswith(f"mechir: {message}") and err.count("\n") == 1


def test_a_registry_names_the_closest_run_measure_and_site(
    toy: HookedEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    run = mi.run("vast2025/direction_ablation", toy, TOY, pool=mi.Pool(limit_queries=2))
    for arguments, message in (
        (["show", "g" + run.id[1:4]], f"in 'mechir-registry': the closest are '{run.id}'."),
        (["delete", "g" + run.id[1:4], "--reason", "x"], f"the closest are '{run.id}'."),
        (["findings", "--measure", "effect"], "There is no finding of measure 'effect': the closest are "),
        (["findings", "--site", "doc<-qery"], "There is no finding of site 'doc<-qery': the closest are 'doc<-query'"),
        (["findings", "--model", "tyo"], "There is no run of model 'tyo' here: there are "),
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 2 and message in err, err
