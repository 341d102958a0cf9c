"""What an author of an experiment meets: one sentence for whatever is wrong with the file, the class or a value."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechir import analyses
from mechir.catalog import all_experiments, default_experiment, experiments, load_experiment
from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished
from mechir.measures import CONDUCTANCE, PATCHING, Measure, stated
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call

ROOT = Path(__file__).parent.parent
BEGIN = """from dataclasses import dataclass, field
import mechir as mi
from mechir.measures import Measure, stated
from mechir.options import option
@dataclass(frozen=True)
class Bias(mi.Experiment):
    \"\"\"How scores are spread.\"\"\"
    share: float = option(0.5, "the share", least=0, most=1)
    layers: tuple[int, ...] = option((), "the layers", most=3)
    def measure(self, model, material):
        return mi.sweep(model, material, {"original": ()})
"""
SUMMARISE = "    def summarise(self, run):\n        return run.rows.groupby('name', as_index=False)['score'].mean()\n"
CHART = "    def chart(self, summary):\n        return mi.views.charts.bars(summary, 'score', 'name', title='x')\n"
WHOLE = BEGIN + SUMMARISE + CHART


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(text: str, name: str = "bias.py") -> str:
    Path(name).write_text(text)
    return name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = = 1\n", r"bias.py' cannot be loaded, SyntaxError in line 1: invalid syntax.*\.$"),
        ("import nowhere_at_all\n", r"cannot be loaded, ModuleNotFoundError in line 1: No module named 'nowhere_at_all'\.$"),
        (WHOLE.replace("float", "flaot"), r"cannot be loaded, NameError.*: name 'flaot' is not defined"),
        (WHOLE.replace("(frozen=True)", ""), r"TypeError.*: cannot inherit .*: write @dataclass\(frozen=True\) above"),
        (WHOLE.replace("tuple[int, ...]", "list"), r"is a <class 'list'>: annotate it as bool, int, float, str, or as a list, "
         r"tuple\[Head, \.\.\.\], tuple\[Site, \.\.\.\], tuple\[Direction, \.\.\.\], tuple\[int, "),
        (WHOLE.replace('option((), "the layers", most=3)', "()"), r"'layers' of Bias is a field and no option: write option"),
        (WHOLE + "    def finding(self, run): ...\n", r"^Nothing uses 'Bias.finding': write 'findings', or begin its name with"),
        (WHOLE + "    def summarize(self, run): ...\n", r"Nothing uses 'Bias.summarize': write 'summarise'"),
        (WHOLE + "    run_on = 'contrasts'\n", r"Nothing uses 'Bias.run_on': write 'runs_on'"),
        (WHOLE + "OWN = Measure('contrast, mine', 'logits')\n", r"'contrast, mine' \(logits\) may read as 'contrast\[ of .*"
         r"\(attention\), a measure of mechir's: give it another text"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_sentence(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MechirError, match=message) as caught:
        load_experiment(written(text))
    code, out, err = call(capsys, "run", "bias.py", defaults=True)
    assert (code, out, err) == (2, "", f"mechir: {caught.value}\n") and err.count("\n") == 1


def test_a_broken_file_and_a_test_among_the_analyses_stop_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "paper").mkdir()
    written("x = = 1\n", "paper/broken.py")
    written("", "paper/test_bias.py")
    before = len(all_experiments())
    monkeypatch.setattr(analyses, "__path__", [*analyses.__path__, str(tmp_path)])
    assert "paper/broken" in experiments() and "paper/test_bias" not in experiments()
    assert len(all_experiments()) == before
    code, out, err = call(capsys, "run", "--help", defaults=True)
    assert (code, err) == (0, "") and "SyntaxError in line 1: invalid syntax" in " ".join(out.split())
    for more in ([], ["--help"], ["--top", "3"]):
        code, out, err = call(capsys, "run", "paper/broken", *more, defaults=True)
        assert (code, out) == (2, "") and "cannot be loaded, SyntaxError in line 1" in err and err.count("\n") == 1
    assert default_experiment().is_default


def test_values_out_of_range_and_unknown_options(capsys: pytest.CaptureFixture[str]) -> None:
    kind: Any = load_experiment(written(WHOLE))
    wrong = [
        ({"shar": 0.3}, "'bias' has no option 'shar': it takes share, layers; the closest is 'share'."),
        ({"share": 2.0}, "share=2 is out of range: write 0 to 1."),
        ({"layers": (5,)}, "layers=5 is out of range: write 3 or less."),
        ({"layers": "1,x"}, "Cannot read layers='1,x': write numbers of 0 or more with commas, e.g. 1,5."),
        ({"layers": [0.5]}, "Cannot read layers='0.5': write whole numbers with commas, e.g. 1,5."),
    ]
    for given, message in wrong:
        for make in (kind, kind.chosen):
            with pytest.raises(MechirError) as caught:
                make(**given)
            assert str(caught.value) == message
    with pytest.raises(MechirError, match="'bias' takes share, layers: given 3 values"):
        kind(0.1, (), 3)
    assert kind(layers="2 1").layers == (1, 2) and kind(layers=[2, 1, 2]).written["layers"] == "1,2"
    text = " ".join(call(capsys, "run", "bias.py", "--help", defaults=True)[1].split())
    assert "The share (0 to 1)." in text and "The layers (3 or less)." in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BEGIN + SUMMARISE.replace("score", "skore") + CHART, "fails in summarise, KeyError in line 13: 'Column not found: skore'"),
        (BEGIN + SUMMARISE + CHART.replace("score", "skore"), r"fails in chart, KeyError in line 15: .*skore"),
        (WHOLE + "    def findings(self, run):\n        return run.summary.skore\n", "fails in findings, AttributeError in line 17: .*skore"),
        (WHOLE + "    def findings(self, run):\n        return stated(run.summary, Measure('a', 'b'))\n",
         r"^The summary has no column 'estimate': write stated\(summary, measure, 'its name'\)"),
    ],
)  # fmt: skip
def test_a_missing_column_is_one_sentence_and_the_rows_stay(
    text: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    chosen = ("--model", str(TOY_MODEL), "--collection", str(TOY), "--limit-queries", "2")
    for _ in range(2):
        code, _, err = call(capsys, "run", written(text), *chosen, defaults=True)
        with pytest.raises(MechirError, match=message):
            raise MechirError(err.splitlines()[-1].removeprefix("mechir: "))
        assert code == 2 and "Traceback" not in err
        if "fails" in message:
            assert "stored in mechir-registry/runs/" in err and "the same command" in err
        assert len(list(tmp_path.glob("mechir-registry/runs/*/part-*"))) == 1
    assert "1/1 units" not in err


def test_a_default_with_a_dot_is_a_parameter() -> None:
    measure = Measure("held[ at {share=0.5}]", "r")
    assert measure.takes == ("share",) and str(measure(share=0.3)) == "held at 0.3" and str(measure()) == "held"
    assert measure.covers("held at 0.3") and CONDUCTANCE("relevant", target="margin").family.text == CONDUCTANCE.text
    for text in ("held {my share}", "held {}", "held {1x}", "held {share"):
        with pytest.raises(
            MechirError, match=r"Cannot read the parameters of '.*': write \{name\} or \{name=default\}"
        ):
            Measure(text, "r")


@pytest.mark.parametrize(
    "text", ["patching, {axiom}[, at {at}]", "patching, {x}", "QK alignment", "{x} without", "k1 of {x}"]
)
def test_a_measure_with_the_text_of_another_is_refused(text: str) -> None:
    with pytest.raises(MechirError, match="a measure of mechir's: give it another text"):
        Measure(text, "metres")
    assert Measure("QK alignment", "sd of random directions", role="matching")  # the same one
    assert stated(pd.DataFrame({"site": ["h0.1"]}), PATCHING("tfc1"), value=1.0)["value"].tolist() == [1.0]


def test_in_a_checkout_the_test_is_written_among_the_tests(capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (".git", "tests", "analyses/paper"):
        Path(folder).mkdir(parents=True)
    code, out, _ = call(capsys, "new", "experiment", "my_heads", "--folder", "analyses/paper", defaults=True)
    assert code == 0 and [file.name for file in Path("analyses/paper").iterdir()] == ["my_heads.py"]
    test = Path("tests/test_my_heads.py").resolve()
    assert f"pytest {test}" in out and 'parent / "../analyses/paper/my_heads.py"' in test.read_text()
    for words in ("check", "format --check"):
        command = [
            *(sys.executable, "-m", "ruff"),
            *words.split(),
            "--config",
            str(ROOT / "pyproject.toml"),
            "--config",
            f"src=['{ROOT}']",
            ".",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    for file in ("analyses/paper/my_heads.py", "tests/test_my_heads.py"):
        for node in ast.walk(ast.parse(Path(file).read_text())):
            if isinstance(node, ast.FunctionDef):
                given = [argument for argument in node.args.args if argument.arg != "self"]
                assert node.returns and all(argument.annotation for argument in given), (file, node.name)


def test_what_an_experiment_does_not_define_is_named_where_it_is_called() -> None:
    @dataclasses.dataclass(frozen=True)
    class Half(Experiment):
        """Measures, and says nothing."""

    with pytest.raises(MechirError, match=r"'Half' is no experiment: it defines no summarise\."):
        Half().summarise(Finished(pd.DataFrame()))
    with pytest.raises(MechirError, match=r"'Half' is no experiment: it defines no chart\."):
        Half().chart(pd.DataFrame())
