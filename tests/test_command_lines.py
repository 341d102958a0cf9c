"""What every command line refuses: an option given twice that takes one value, and an empty value."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from mechir.catalog import experiments, load_experiment
from mechir.cli import commands
from mechir.cli.options import Command
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call

GROUP = commands.commands["run"]
assert isinstance(GROUP, click.Group)


def every_command() -> list[tuple[list[str], click.Command]]:
    """How each command is called, and what it is."""
    plain = [([name], one) for name, one in commands.commands.items() if not isinstance(one, click.Group)]
    groups = [
        (name, one) for name, one in commands.commands.items() if isinstance(one, click.Group) and one is not GROUP
    ]
    plain += [([name, inner], command) for name, group in groups for inner, command in group.commands.items()]
    context = click.Context(GROUP)
    named = [(["run", name], GROUP.get_command(context, name)) for name in experiments()]
    return [*plain, *[(words, one) for words, one in named if one is not None]]


EVERY = every_command()


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("words", "command"), EVERY, ids=[" ".join(words) for words, _ in EVERY])
def test_nothing_is_given_twice_or_empty(
    words: list[str], command: click.Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert isinstance(command, Command)
    for param in command.params:
        if not isinstance(param, click.Option):
            continue
        value = [] if param.is_flag else ["1"]
        if not param.multiple:
            code, out, err = call(capsys, *words, param.opts[0], *value, param.opts[-1], *value, defaults=True)
            named = " and ".join(dict.fromkeys([*param.opts, *param.secondary_opts]))
            said = f"mechir: {named} is given 2 times and is taken once: leave the others out.\n"
            assert (code, out, err) == (2, "", said)
        if value and param.name not in command.of_experiment:
            code, out, err = call(capsys, *words, param.opts[0], "", defaults=True)
            assert (code, out, err) == (2, "", f"mechir: {param.opts[0]} is empty: give it a value, or leave it out.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("score", "--model", "./nowhere", "-m", str(TOY_MODEL), "--collection", str(TOY), "--out", "x.run"),
        ("score", "--collection", "./nowhere", "-c", str(TOY), "--model", str(TOY_MODEL), "--out", "x.run"),
        ("run", "vast2025/layer_sweep", "--collection", "./nowhere", "--collection", str(TOY)),
        ("run", "vast2025/layer_sweep", "--cut=doc<-query", "--cut=cls<-all"),
        ("run", "--seed", "1", "--seed", "1"),
        ("findings", "--causal", "--not-causal"),
        ("show", "--registry", "a", "--registry", "b"),
        ("export", "x.csv", "--digits", "1", "--digits", "2"),
    ],
)
def test_the_first_of_two_is_not_dropped(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = call(capsys, *arguments, defaults=True)
    assert (code, out) == (2, "") and err.count("\n") == 1 and "is given 2 times and is taken once" in err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in (
        (("show", ""), "RUN"),
        (("fetch", ""), "MODEL_OR_DATASET"),
        (("convert", "", "--out", "x"), "MODEL"),
    ):
        code, out, err = call(capsys, *words, defaults=True)
        assert (code, out, err) == (2, "", f"mechir: {named} is empty: give it a value, or leave it out.\n")


def test_what_may_be_repeated_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    masks = ("--mask", "D<-Q@0-1", "--mask", "doc<-query@0, 1", "--ablate", "h0.3", "--ablate", "h00.3")
    code, _, _ = call(capsys, "score", *masks, "--out", "x.run")
    assert code == 0 and Path("x.run").read_text().splitlines()[0].endswith(" mechir-score-doc<-query@0-1-h0.3")
    code, _, _ = call(capsys, "score", "--mask", "doc<-query@0-1", "--ablate", "h0.3", "--out", "y.run")
    assert code == 0 and Path("x.run").read_text() == Path("y.run").read_text()


def test_click_s_own_mistakes_keep_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "score", "--modle", "x", "--out", "x.run")
    assert code == 2 and "No such option" in err
    code, _, err = call(capsys, "score", "--help", "--help", defaults=True)
    assert (code, err) == (0, "")


def test_a_file_that_cannot_be_written_is_told_before_anything_is_scored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechir.encoder.opening.load", lambda *given, **options: pytest.fail("it was loaded"))
    Path("there").mkdir()
    for out in ("no/such/x.run", "there"):
        code, _, err = call(capsys, "score", "--out", out)
        assert code == 2 and err.startswith(f"mechir: Cannot write '{out}' (")


def test_options_of_experiments_say_by_themselves_whether_they_may_be_empty() -> None:
    for words, command in EVERY:
        own = load_experiment(words[1]).options() if words[0] == "run" else {}
        assert isinstance(command, Command) and set(command.of_experiment) == set(own)


def test_which_options_may_be_repeated() -> None:
    assert {param.name for _, command in EVERY for param in command.params if getattr(param, "multiple", False)} == {
        "mask", "ablate", "fillers", "collection", "masks", "evaluate",
    }  # fmt: skip
