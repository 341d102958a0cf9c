"""What is asked is checked before anything is measured or written, and what is one thing is one run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mechir as mi
from mechir import work
from mechir.catalog import experiments, load_experiment
from mechir.diagnostic_sets import diagnostic
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.experiment import Experiment, Inputs
from mechir.judged_collection import Collection
from mechir.material import Pool, material_of, source_of
from mechir.methods.patching import patch
from mechir.perturbed import Diagnostic
from mechir.registry.runs import Run
from tests.models import TOY_MODEL, nine_queries
from tests.test_cli import call

NAN = float("nan")
NO_HEADS = ["h1.1,h2.9", "h0.9", "h1.1 h9.0", "n1.2", "h1.1.q", "1.9", "h-1.0"]
NO_COUNT = [0, -1, 2.5, NAN, "four", True, None]
NO_SEED = [-1, 1.5, 2**70, "one"]
NO_VECTOR = [-2, 10**6, 0.5]
NO_TABLE = ["no/such/table.tsv", "folder", "few.tsv", "words.tsv", "nan.tsv", "twice.tsv", "binary.tsv", "alike.tsv"]
NO_FILLER = ["goldfish grow", "", "xylophone", " "]
NO_FLAG = ["yes", 2, None]

BAD: dict[str, list[Any]] = {
    "at": ["querry", "query|dock", "", "pad", "query|pad", 3],
    "baseline": ["zero", "pad", "", "PAD"],
    "by": ["mean", ""],
    "cut": ["doc->query", "doc<-dock", "", ",", "doc", "pad<-query", "24"],
    "delta": [-1, NAN, -0.001, "small"],
    "draws": NO_COUNT,
    "every": NO_COUNT,
    "exponential": NO_FLAG,
    "factors": ["1,x", "-1", "nan", "inf", ","],
    "filler": NO_FILLER,
    "freeze": ["head", "", "all"],
    "grid": ["x", "", "0", "-1", "101", "nan", "1,,x", "0.0001"],
    "heads": NO_HEADS,
    "how": ["best", ""],
    "idf": NO_TABLE,
    "joint": NO_FLAG,
    "k": [0, -1, 9999, NAN],
    "label": ["relevance", "", "both"],
    "ln": ["life", ""],
    "method": ["eap_ig", "", "screen"],
    "neurons": ["posts", "", "pattern", "z", "resid"],
    "of": ["meanmax", "", "Mass"],
    "others": [-1, 0.5, NAN],
    "part": ["w", "", "out", "post"],
    "evaluate": ["nDGC@10", "", "Judged@10", "ERR@10"],
    "groups": ["nowhere.tsv"],
    "masks": ["query->doc", "doc<-query@h9.9", "doc<-query@9", "dog"],
    "sites": ["dog", "h9.9", "resid0", "h0.1.q", "n0.99999"],
    "ways": ["half", "", "zero,half"],
    "penalty": [0, -1.0, NAN, float("inf")],
    "per_query": NO_COUNT,
    "points": NO_COUNT,
    "ports": ["x", "", "q,x", "in"],
    "qk_fix": NO_FLAG,
    "queries": NO_COUNT,
    "receivers": [*NO_HEADS, "score", "mlp1"],
    "relevant": [7, 1.5, NAN, "two"],
    "hard": [7, -1, NAN],
    "weak": [7, -1, -2, NAN],
    "renormalise": NO_FLAG,
    "scheme": ["F_in", "toy,F_out", "nine"],
    "sample": [-1, 2.5, NAN, "four"],
    "seed": NO_SEED,
    "same_queries": NO_FLAG,
    "sep2": NO_FLAG,
    "sign": [2, -2, 0.5],
    "strongest": [-1, NAN],
    "take": NO_COUNT,
    "target": ["margins", "", "h9.0@query<-doc", "h0.1", "h1.1@query<-all", "n1.99999", "mlp1"],
    "tol": [0, -0.1, NAN, float("inf")],
    "top": NO_COUNT,
    "vector": NO_VECTOR,
    "vectors": NO_COUNT,
    "words": NO_COUNT,
}
"""Values that an option refuses, by its name; every option of every experiment is here or in `OWN` or `FREE`."""
UNITS = ["posts", "", "resid", "mlp"]
NO_GRADE = ["0", "9", "-1", "x", "2,3", "nowhere:1", "toy:1,toy:2", "\u00b2"]
AT_LEAST_0 = [-1, 2.5, NAN, "four"]
OWN: dict[tuple[str, str], list[Any]] = {
    **{("joint/cut", name): ["matching"] for name in ("role", "term", "label")},  # beside sites
    ("joint/examples", "heads"): [*NO_HEADS, "", " , "],
    ("vast2025/cls_lens", "relevant"): [0, 4, -1, 1.5, NAN],
    ("vast2025/cls_lens", "draws"): [*NO_COUNT, 4],
    ("vast2024/pruning", "draws"): [*NO_COUNT, 19],
    ("vast2024/pruning", "every"): [*NO_COUNT, 1],
    **{(f"vast2024/{name}", "heads"): UNITS for name in ("importance", "distribution", "transfer", "pruning")},
    ("vast2024/matching_heads", "heads"): UNITS,
    **{
        (f"vast2024/{name}", option): values
        for name in ("importance", "distribution", "transfer", "pruning", "matching_heads")
        for option, values in (("relevant", NO_GRADE), ("take", AT_LEAST_0))
    },
}
FREE = {("joint/overlap", "measures"), ("joint/across_models", "measures"), ("joint/across_models", "same")}
"""What is looked up in the registry."""
GOOD: dict[str, dict[str, Any]] = {
    "vast2025/attention_contrast": {"weak": 0, "hard": 1},
    "vast2025/qk_svd": {"weak": 0, "hard": 1},
    "vast2025/cls_lens": {"draws": 5},
    "vast2024/pruning": {"grid": "10"},
    "lu2025/idf_edit": {"heads": "h0.1"},
    "joint/cut": {"sites": "h0.1"},
}
"""What makes an experiment's options right on the toy."""
NAMES = list(experiments())
EACH = [(name, option) for name in NAMES for option in load_experiment(name).options()]


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return mi.collection(nine_queries(tmp_path_factory.mktemp("folder") / "toy"))


@pytest.fixture(scope="module")
def tfc1(nine: Collection) -> Diagnostic:
    return diagnostic("tfc1", nine, limit_queries=4, per_grade=1)


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of IDF with something wrong, in the folder where everything runs."""
    monkeypatch.chdir(tmp_path)
    words = ["a", "the", "of", "in", "to", "and", "is", "how", "what", "do", "water", "tall"]
    lines = [f"{word}\t{place}.5" for place, word in enumerate(words)]
    texts = {
        "good": lines,
        "few": lines[:9],
        "words": ["how much", "2.5"],
        "nan": [*lines, "wave\tnan"],
        "twice": [*lines, "a\t3"],
        "alike": [f"{word}\t2" for word in words],
    }
    for name, written in texts.items():
        Path(f"{name}.tsv").write_text("\n".join(written) + "\n")
    Path("binary.tsv").write_bytes(b"\xff\xfe\t1\n")
    Path("folder").mkdir()


@pytest.fixture
def forwards(toy: HookedEncoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every forward that is made of the model."""
    made: list[str] = []
    for name in ("forward", "embedded"):
        whole = getattr(HookedEncoder, name)

        def counted(self: Any, *given: Any, _whole: Any = whole, _name: str = name, **rest: Any) -> Any:
            made.append(_name)
            return _whole(self, *given, **rest)

        monkeypatch.setattr(HookedEncoder, name, counted)
    return iter([made])  # type: ignore[return-value]


def normal(experiment: Experiment, toy: HookedEncoder, source: Any) -> Experiment:
    """The experiment with its options in their normal form."""
    source = source_of(experiment, source)
    material = material_of(experiment, toy, source, Pool()).material
    return work.checked(experiment, Inputs(toy, material, source, Pool(), Path("registry")))


def asked(kind: type[Experiment], toy: HookedEncoder, source: Any, **chosen: Any) -> dict[str, Any]:
    """The options in their normal form, as they are written."""
    return normal(kind.chosen(**chosen), toy, source).written


def test_every_option_has_values_that_it_refuses() -> None:
    lacking = {(name, option) for name, option in EACH if option not in BAD and (name, option) not in OWN}
    assert lacking == FREE


@pytest.mark.parametrize("name", NAMES)
def test_what_is_right_is_taken(name: str, toy: HookedEncoder, nine: Collection, tfc1: Diagnostic) -> None:
    kind = load_experiment(name)
    experiment, source = kind.chosen(**GOOD.get(name, {})), tfc1 if kind.runs_on == "contrasts" else nine
    assert normal(experiment, toy, source) == experiment  # a default is in normal form
    assert kind.chosen(**experiment.written) == experiment  # what is written is read back


@pytest.mark.parametrize(("name", "option"), [each for each in EACH if each not in FREE])
def test_a_bad_value_is_refused_before_anything_is_measured_or_written(
    name: str,
    option: str,
    toy: HookedEncoder,
    nine: Collection,
    tfc1: Diagnostic,
    forwards: Iterator[list[str]],
    tmp_path: Path,
) -> None:
    kind, made = load_experiment(name), next(forwards)
    source = tfc1 if kind.runs_on == "contrasts" else nine
    good = {key: value for key, value in GOOD.get(name, {}).items() if key != option}
    for value in OWN.get((name, option), BAD.get(option, [])):
        with pytest.raises(MechirError) as caught:
            mi.run(kind, toy, source, registry=tmp_path / "registry", **(good | {option: value}))
        said = str(caught.value)
        assert f"{option}=" in said or str(value) in said or option in said, (value, said)
        assert said.endswith(".") and "--" not in said and "\n" not in said and made == [], (value, said)
    assert not (tmp_path / "registry").exists()


ALIKE: list[tuple[str, str, list[str], str]] = [
    ("chen2024/head_maps", "at", ["query|doc", "doc|query", "Q|D", "query|document", " D | Q "], "query|doc"),
    ("chen2024/head_maps", "at", ["query other", "Query  Other"], "query other"),
    ("chen2024/head_maps", "at", ["all", "ALL", "cls|query|sep1|doc|sep2"], "all"),
    ("lu2025/block_patching", "at", ["role", "Role "], "role"),
    ("lu2025/block_patching", "at", ["cls|doc", "D|CLS"], "cls|doc"),
    *(
        (name, "heads", ["h0.3,h1.1", "h1.1,h0.3", "h1.1 h0.3", "h01.1, h0.3,", " h0.3,h1.1,h0.3 "], "h0.3,h1.1")
        for name in ("chen2024/head_attention", "chen2024/head_positions", "lu2025/idf_edit", "lu2025/semantic_bm25",
                     "lu2025/soft_tf", "vast2025/qk_projection")
    ),
    ("lu2025/soft_tf", "heads", ["", " ", ","], ""),
    ("joint/examples", "heads", ["h1.1,h0.3", "h1.1 h00.3 h1.1"], "h1.1,h0.3"),  # shown in the order given
    ("lu2025/head_to_heads", "receivers", ["h0.3,h1.1", "h1.1 h0.3"], "h0.3,h1.1"),
    ("lu2025/head_to_heads", "ports", ["q,v", "v,q", "V, Q,", "q,v,v"], "q,v"),
    ("lu2025/idf_edit", "factors", ["1,5", "5,1.0", "1 5", "1,5,5"], "1,5"),
    ("lu2025/idf_edit", "factors", [""], ""),
    ("vast2025/layer_sweep", "cut", ["doc<-query,cls<-all", "cls<-all,D<-Q", "doc <- query, cls<-all,"], "doc<-query,cls<-all"),
    ("vast2025/layer_sweep", "cut", ["25", " 25 ", ",".join(map(str, mi.directions()))], "25"),
    ("vast2025/layer_sweep", "cut", ["query|doc<-cls", "D|Q<-CLS"], "query|doc<-cls"),
    ("vast2024/pruning", "grid", ["10,50", "50.0, 10", "10,10,50"], "10,50"),
    ("vast2024/pruning", "scheme", ["toy", "toy,toy", " toy "], "toy"),
    ("vast2024/importance", "target", ["h1.3@query<-doc", "h01.3@Q<-D"], "h1.3@query<-doc"),
    ("vast2024/importance", "target", ["n1.7", "n1.7@all", "n01.07"], "n1.7"),
    ("joint/overlap", "measures", ["a;b c", "b c ; a", "a;b c;a;"], "a;b c"),
    ("joint/across_models", "same", ["b,a", "a, b", "a,b,a,"], "a,b"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "option", "ways", "normal"), ALIKE)
def test_what_is_one_thing_is_one_value(
    name: str, option: str, ways: list[str], normal: str, toy: HookedEncoder, nine: Collection, tfc1: Diagnostic
) -> None:
    kind = load_experiment(name)
    source = tfc1 if kind.runs_on == "contrasts" else nine
    for way in ways:
        assert asked(kind, toy, source, **(GOOD.get(name, {}) | {option: way}))[option] == normal


def test_numbers_are_what_their_options_say(toy: HookedEncoder, nine: Collection) -> None:
    written = load_experiment("vast2025/cls_lens").chosen(draws=np.int64(5), penalty=1, relevant=2.0).written
    assert written == {"draws": 5, "penalty": 1.0, "relevant": 2}
    assert {name: type(value) for name, value in written.items()} == {"draws": int, "penalty": float, "relevant": int}
    cut = load_experiment("vast2025/direction_ablation").chosen(renormalise=np.bool_(True))
    assert cut.written["renormalise"] is True


def test_lists_are_lists_in_python(toy: HookedEncoder) -> None:
    edit, heads = load_experiment("lu2025/idf_edit").chosen, [mi.Head(1, 1), "h0.3"]
    assert edit(heads=heads, factors=[5, 1]) == edit(heads="h1.1,h0.3", factors="1,5")
    assert edit(heads=mi.Head(1, 1)).heads == (mi.Head(1, 1),) and edit(factors=3).factors == (3.0,)
    cut = load_experiment("vast2025/layer_sweep").chosen
    assert cut(cut=[mi.Direction.parse("cls<-all"), "doc<-query"]) == cut(cut="doc<-query,cls<-all")


def test_one_place_under_five_names_is_one_run_that_links_counts(
    toy: HookedEncoder, tfc1: Diagnostic, tmp_path: Path
) -> None:
    names = ("query|doc", "doc|query", "Q|D", "query|document", "D | query")
    stored = [mi.run("chen2024/head_maps", toy, tfc1, registry=tmp_path / "r", at=at) for at in names]
    assert len({run.id for run in stored}) == 1
    assert stored[0].record["identity"]["options"] == stored[0].record["asked"] == {"part": "z", "at": "query|doc"}
    told = mi.findings(registry=tmp_path / "r")
    heads = told[told["measure"] != "gap, tfc1"]
    assert set(heads["measure"]) == {"patching, tfc1, at query|doc"} and set(heads["role"]) == {"soft-tf"}


def test_a_place_is_said_in_one_way_to_whoever_patches(toy: HookedEncoder, tfc1: Diagnostic) -> None:
    contrasts = tfc1.align(toy).contrasts[:2]
    assert set(patch(toy, contrasts, "h0.1", at="D|Q")["at"]) == {"query|doc"}
    assert set(patch(toy, contrasts, "h0.1", at=["Injected", "document"])["at"]) == {"injected", "doc"}
    with pytest.raises(MechirError, match=r"'doc\|pad' holds padding, which the model does not read"):
        patch(toy, contrasts, "h0.1", at="doc|pad")
    with pytest.raises(MechirError, match=r"No contrast has a position at \[\]: write one of all, role"):
        patch(toy, contrasts, "h0.1", at=[])


def test_another_table_under_one_name_is_another_run(toy: HookedEncoder, nine: Collection, tmp_path: Path) -> None:
    def run() -> Run:
        return mi.run("lu2025/idf_direction", toy, nine, registry=tmp_path / "r", idf="good.tsv", vectors=3)

    first = run()
    assert run().id == first.id and first.summary["n"].max() > 9
    text = Path("good.tsv").read_text()
    Path("good.tsv").write_text(text.replace("a\t0.5", "a\t7.25"))
    second = run()
    assert second.id != first.id and not second.summary["pearson_idf"].equals(first.summary["pearson_idf"])


def test_a_sign_that_is_given_is_kept(toy: HookedEncoder, nine: Collection) -> None:
    from mechir.methods.lexical import find_idf

    found = find_idf(toy, nine, vector=2)
    assert find_idf(toy, nine, vector=2, sign=-found["sign"]) == {"vector": 2, "sign": -found["sign"]}


def test_the_messages_say_what_to_write(toy: HookedEncoder, nine: Collection) -> None:
    cases = [
        ("attention_contrast", {}, r"No pair of this pool has grade -1 \(weak\): it has grades 0, 1, 2, 3; add easy_negatives=10"),
        ("attention_contrast", {"weak": 7}, r"No pair of this pool has grade 7 \(weak\): .*; write weak= with one of 0, 1, 2, 3\."),
        ("attention_contrast", {"weak": 0, "of": "meanmax"}, r"Unknown of='meanmax': the closest are 'mean_max'"),
        ("attention_contrast", {"weak": 0, "delta": -1}, r"delta=-1 is out of range: write 0 or more\."),
        ("attention_contrast", {"weak": 3}, r"relevant= and weak= are both 3"),
        ("qk_projection", {"heads": "h0.1,h2.99"}, r"Cannot read heads='h0.1,h2.99': Layer 2 is out of range .*the model has layers 0-1"),
        ("qk_projection", {"heads": "h0.1,h1.9"}, r"Cannot read heads=.*: Head 9 is out of range: layer 1 has heads 0-3\."),
        ("qk_projection", {"strongest": 0, "others": 0}, r"strongest=0 and others=0 leave nothing"),
        ("cls_lens", {"relevant": 9}, r"No pair has grade 9 or more: the grades are \[0, 1, 2, 3\]; write relevant= with one that parts them"),
    ]  # fmt: skip
    for name, chosen, message in cases:
        with pytest.raises(MechirError, match=message):
            asked(load_experiment(f"vast2025/{name}"), toy, nine, **chosen)


def test_a_dry_run_refuses_as_well(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for options_ in (("--of", "meanmax"), ("--weak", "7"), ()):
        code, out, err = call(capsys, "run", "vast2025/attention_contrast", *options_, "--dry-run")
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("mechir: ")
    code, out, _ = call(capsys, "run", "vast2024/transfer", "--tol", "0", "--dry-run")
    assert (code, out) == (2, "")
    assert not Path("mechir-registry").exists()
