"""Help: every option has its sentence and says its default, every example is taken, and lines stay whole."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from mechir.catalog import experiments, load_experiment
from mechir.cli import commands
from mechir.cli.help import Flag
from tests.test_cli import call
from tests.test_command_lines import EVERY

IDS = [" ".join(words) for words, _ in EVERY]
SCREENS = 100
"""Lines of two screens."""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def examples(text: str) -> Iterator[str]:
    """The commands at the end of a help, without the words beside them."""
    for line in text.partition("Examples:\n")[2].splitlines():
        if line.lstrip().startswith("mechir "):
            yield re.split(r"\s{2,}", line.strip())[0]


@pytest.mark.parametrize(("words", "command"), EVERY, ids=IDS)
def test_every_option_has_a_sentence_and_says_its_default(words: list[str], command: click.Command) -> None:
    context = click.Context(command)
    for param in command.params:
        if isinstance(param, click.Option):
            record = param.get_help_record(context)
            assert isinstance(param, Flag) and record is not None
            assert re.match(r"\S.+\.|.+\]$", record[1]) and "INTEGER" not in record[0] and "<=" not in record[1]
            if words[0] == "run" and not param.is_flag and param.name not in ("run", "top_k", "data"):
                assert re.search(r"default|found by the run", record[1]), record


def test_a_default_is_the_one_that_is_taken() -> None:
    for words, command in EVERY:
        options = load_experiment(words[1]).options() if words[0] == "run" else {}
        records = {param.name: param.get_help_record(click.Context(command)) for param in command.params}  # type: ignore[attr-defined]
        for name, declared in options.items():
            default = declared.written(declared.default)
            record = records[name]
            assert record is not None
            if default != "" and not isinstance(default, bool):
                assert f"[default: {default}]" in record[1].replace(", ", ","), (words, record)
            elif default == "":
                assert re.search(r"by default|found by the run|\[default: none\]", record[1]), (words, record)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "words", [*(words for words, _ in EVERY), [], ["run"], ["new"]], ids=lambda words: " ".join(words)
)
def test_help_fits_its_terminal(
    words: list[str], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = call(capsys, *words, "--help", defaults=True)
    lines = out.splitlines()
    copied = words[:1] == ["run"] and len(words) > 1  # examples of experiments are copied whole, however long
    shown = [line for line in lines if not (copied and line.lstrip().startswith("mechir "))]
    assert code == 0 and max(map(len, shown)) <= columns - 2 and len(lines) <= SCREENS
    assert not [line for line in shown if re.search(r"\w-$", line)] and out.isascii() and "[default:\n" not in out
    assert list(examples(out)), "every help ends with examples"


def test_the_sections_stand_in_the_order_of_importance(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "run", "lu2025/head_to_score", "--help", defaults=True)
    order = ["--model", "--collection", "--limit-queries", "--diagnostic", "--per-grade", "--seed", "--freeze", "--ln"]
    order += ["--relevant-label", "--device", "--registry", "--dry-run", "--shard", "--help", "Examples:"]
    places = [out.index(f"{flag} " if flag[0] == "-" else flag) for flag in order]
    assert places == sorted(places)
    titles = re.findall(r"^(\w.+):$", out, re.MULTILINE)
    assert titles == ["What it runs on", "Options of the experiment", "How it is computed and kept"]


def test_the_list_of_experiments_names_files_and_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "run", "--help", defaults=True)
    words = " ".join(out.split())
    assert "EXPERIMENT: a name, or a .py file of your own" in words and "..." not in words
    for name in experiments():
        assert f"  {name} " in f"{out} " or f"  {name}\n" in out
    assert "arXiv:2405.02503" not in out  # papers are named by the help of each


@pytest.mark.parametrize("name", experiments())
def test_an_experiment_s_examples_are_taken(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        importlib.import_module("mechir.cli.run"), "_run", lambda experiment, *given, **rest: asked.append(experiment)
    )
    _, out, _ = call(capsys, "run", name, "--help", defaults=True)
    given = list(examples(out))
    for example in given:
        code, _, err = call(capsys, *shlex.split(example)[1:], defaults=True)
        assert (code, err) == (0, "")
    assert 1 <= len(given) <= 2 and [experiment.name for experiment in asked] == [name] * len(given)


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments())
def test_an_experiment_s_examples_run_as_they_stand(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On the model and the collection that ship; what they would cost is said, so all that is checked fits."""
    for example in load_experiment(name).examples:
        words = [word for word in shlex.split(example) if word != "--dry-run"]
        code, out, err = call(capsys, "run", name, *words, "--dry-run", defaults=True)
        assert (code, "forwards" in out) == (0, True), err


@pytest.mark.parametrize(("words", "command"), [(words, one) for words, one in EVERY if words[0] != "run"])
def test_the_examples_of_other_commands_are_parsed(words: list[str], command: click.Command) -> None:
    for example in examples(command.epilog or ""):
        given = shlex.split(example.partition(" > ")[0])[1:]
        assert given[: len(words)] == words
        command.make_context(words[-1], given[len(words) :])  # raises for what it does not take


def test_a_file_s_own_examples_name_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "new", "experiment", "my_heads")
    _, out, _ = call(capsys, "run", "my_heads.py", "--help", defaults=True)
    assert list(examples(out)) == ["mechir run my_heads.py --limit-queries 10", "mechir run my_heads.py --dry-run"]


def test_commands_stand_in_the_order_of_importance() -> None:
    assert commands.list_commands(click.Context(commands))[:3] == ["run", "report", "findings"]
