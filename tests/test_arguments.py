"""Arguments of another kind are one sentence, and what can be written in two ways is one run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mechir as mi
from mechir.diagnostic_sets import diagnostic
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.judged_collection import Collection
from mechir.material import Pool
from mechir.registry.runs import Run
from mechir.shard import Shard
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call

SWEEP = "vast2025/layer_sweep"
ANALYSES = Path(__file__).parent.parent / "analyses"


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.fixture
def begun(toy: HookedEncoder, tmp_path: Path) -> Callable[..., Run]:
    """Begins a run of which nothing is measured."""

    def begin(name: Any = SWEEP, source: Any = None, **asked: Any) -> Run:
        source = mi.collection(TOY) if source is None else source
        return mi.run(name, toy, source, registry=tmp_path / "r", shard=Shard(1, 2), **asked)

    return begin


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"source": [1, 2]}, r"1 is no pair of query and document"),
        ({"source": "no-such"}, r"'no-such' is neither a directory nor an ir_datasets id"),
        ({"pool": {"per_grade": 1}}, r"Cannot run with pool=\{'per_grade': 1\}: write pool=mechir.Pool\(per_grade=5"),
        ({"shard": "0/1"}, r"Cannot run with shard='0/1': write shard=mechir.shard.Shard.parse"),
        ({"model": str(TOY_MODEL)}, r"Cannot run with model='.*write model=mechir.load"),
    ],
)
def test_arguments_of_another_kind_are_refused(
    toy: HookedEncoder, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    given = {"model": toy, "source": mi.collection(TOY)} | asked
    with pytest.raises(MechirError, match=message):
        mi.run(SWEEP, given.pop("model"), given.pop("source"), registry=tmp_path / "r", **given)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_queries": "2"}, r"Cannot take Pool\(limit_queries='2'\): write a whole number"),
        ({"limit_queries": 2.0}, r"Pool\(limit_queries=2.0\)"),
        ({"limit_queries": True}, r"Pool\(limit_queries=True\)"),
        ({"seed": None}, r"Pool\(seed=None\)"),
        ({"seed": 1.0}, r"Pool\(seed=1.0\)"),
        ({"seed": 2**70}, r"Pool\(seed=1180591620717411303424\)"),
        ({"top_k": "2"}, r"Pool\(top_k='2'\)"),
        ({"run": 3}, r"Pool\(run=3\): write a name or a path"),
    ],
)
def test_a_pool_is_of_whole_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MechirError, match=message):
        Pool(**options)


@pytest.mark.parametrize("text", ["\u00b2/3", "1/\u0663", "1/-3", ""])
def test_a_shard_is_of_plain_digits(text: str) -> None:
    with pytest.raises(MechirError, match=r"Cannot read shard="):
        Shard.parse(text)


def test_a_run_s_file_has_one_name(begun: Callable[..., Run], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TOY, tmp_path / "toy"))
    (folder / "run.mine.txt").write_text("".join(f"q1 Q0 d01{d:02d} {d} {-d} t\n" for d in range(6)))
    read = mi.collection(folder)
    names = ("mine", "run.mine.txt", str(folder / "run.mine.txt"), folder / "run.mine.txt")
    assert len({begun(source=read, pool=Pool(run=name)).id for name in names}) == 1
    assert len({begun("lu2025/head_to_score", diagnostic("tfc1", read, run=name)).id for name in names}) == 1


def test_an_experiment_has_one_name(begun: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ANALYSES.parent)
    relative = Path("analyses") / f"{SWEEP}.py"
    ids = {begun(name).id for name in (SWEEP, str(relative), relative, ANALYSES / f"{SWEEP}.py")}
    assert len(ids) == 1


def test_an_idf_table_is_what_it_holds(
    begun: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["wifi", "bluetooth", "radio", "signal", "water", "tank", "moon", "tide", "bread", "yeast", "oven", "river"]
    table = "".join(f"{word}\t{1 + place / 4}\n" for place, word in enumerate(words))
    (tmp_path / "idf.tsv").write_text(table)
    shutil.copy(tmp_path / "idf.tsv", tmp_path / "same.tsv")
    monkeypatch.chdir(tmp_path)
    runs = [
        begun("lu2025/idf_direction", idf=name)
        for name in ("idf.tsv", "./idf.tsv", str(tmp_path / "idf.tsv"), "same.tsv")
    ]
    assert len({run.id for run in runs}) == 1
    assert str(tmp_path / "idf.tsv") in runs[0].record["asked"]["idf"]
    (tmp_path / "idf.tsv").write_text(table.replace("1.25", "1.26"))
    assert begun("lu2025/idf_direction", idf="idf.tsv").id != runs[0].id


def test_a_filler_counts_once(begun: Callable[..., Run]) -> None:
    ids = {
        begun("lu2025/head_to_score", diagnostic("tfc1", TOY, fillers=words)).id for words in (["a"], ["a", "a"], "a")
    }
    assert len(ids) == 1


def test_a_direction_is_found_under_each_of_its_names(toy: HookedEncoder, tmp_path: Path) -> None:
    mi.run("vast2025/direction_ablation", toy, mi.collection(TOY), pool=Pool(limit_queries=2), registry=tmp_path)
    found = [len(mi.findings(site=name, registry=tmp_path)) for name in ("doc<-query", "D<-Q", "document<-query")]
    assert found == [1, 1, 1]
    for options in ({"corrected_p": float("nan")}, {"min_effect": -1.0}):
        with pytest.raises(MechirError, match=r"Cannot ask for .*: write a number from 0"):
            mi.findings(registry=tmp_path, **options)  # type: ignore[arg-type]


def test_a_damaged_record_is_named(
    begun: Callable[..., Run], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = begun()
    (run.path / "run.json").write_text((run.path / "run.json").read_text()[:40])
    for command in (("show",), ("report",), ("show", run.id)):
        code, out, err = call(capsys, *command, "--registry", str(tmp_path / "r"))
        assert (code, out) == (2, "") and "run.json' is damaged" in err and "out of the registry" in err


def test_renormalise_without_a_mask_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = call(capsys, "score", "--renormalise", "--out", str(tmp_path / "x.run"))
    said = "mechir: --renormalise says how a mask cuts, and there is none: give --mask, or leave it out.\n"
    assert (code, out, err) == (2, "", said) and not (tmp_path / "x.run").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TOY, tmp_path / "collection"))


@pytest.mark.parametrize(
    ("file", "first", "message"),
    [
        ("docs.tsv", "ID\tsentence", r"line 1: 'ID.tsentence' names columns"),
        ("docs.tsv", "id\tabstract_text", r"names columns"),
        ("queries.tsv", "#id\ttext", r"names columns"),
        ("docs.tsv", "0\t1", r"names columns"),
    ],
)
def test_more_lines_of_column_names_are_refused(folder: Path, file: str, first: str, message: str) -> None:
    path = folder / file
    path.write_text(f"{first}\n{path.read_text()}")
    with pytest.raises(MechirError, match=message.replace(".t", "\\t")):
        mi.collection(folder)


@pytest.mark.parametrize("grade", ["1_0", "0.5", "1e1", str(2**70), "\u0663"])
def test_a_grade_is_a_whole_number(folder: Path, grade: str) -> None:
    with (folder / "qrels.txt").open("a") as file:
        file.write(f"q1 0 d0201 {grade}\n")
    with pytest.raises(MechirError, match=r"qrels.txt, line 73: cannot read"):
        mi.collection(folder)


def test_a_byte_order_mark_inside_a_file_is_refused(folder: Path) -> None:
    path = folder / "queries.tsv"
    path.write_text(path.read_text() + "\ufeffq9\tone more\n")
    with pytest.raises(MechirError, match=r"queries.tsv, line 7: a byte order mark stands inside the file"):
        mi.collection(folder)


@pytest.mark.parametrize("share", [None, True, "0.1", 1.5, -0.1, float("nan")])
def test_a_share_is_a_number_from_0_to_1(share: Any) -> None:
    from mechir.rules import refuse_options

    with pytest.raises(MechirError, match=r"is no share: write a number from 0 to 1"):
        refuse_options("refuse", share)


def test_a_model_without_a_tokenizer_says_so(toy: HookedEncoder) -> None:
    model = HookedEncoder(toy.hf, None, toy.family)
    with pytest.raises(MechirError, match="This model has no tokenizer and reads token ids alone"):
        model.score([("a", "b")])
    assert model(toy.batch(("the", "tank"))).isfinite().all()
    assert isinstance(mi.collection(TOY), Collection) and json.dumps(model.reading.max_length)
