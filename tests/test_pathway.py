"""The whole chain on models whose circuit is known: what is linked, what is not, and what the traps are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir import cli, planted
from mechir.catalog import load_experiment, shown
from mechir.errors import MechirError
from mechir.experiment import Experiment, Inputs
from mechir.inference import studentised
from mechir.judged_collection import Collection
from mechir.material import Pool
from mechir.methods.cutting import TERM
from mechir.methods.edge_graph import Graph
from mechir.registry.frames import as_text
from mechir.registry.runs import Run, open_run, runs
from tests.models import TOY, TOY_MODEL, nine_queries
from tests.test_links import CONTRAST, NOT, PATCHING, SURE, row, tell
from tests.test_plan import POSITIVE

FLAGGED = "flagged by its pattern but causally dead: "


def files(model: planted.PlantedEncoder, folder: Path, queries: int) -> tuple[Collection, str]:
    """Planted pairs with the grades 3, 0 and 1, and the table of IDF that the model holds."""
    pairs = planted.graded(model, queries, 1)
    texts = {pair.query_id: pair.query for pair in pairs}
    (folder / "queries.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in texts.items()))
    (folder / "docs.tsv").write_text("".join(f"{pair.doc_id}\t{pair.document}\n" for pair in pairs))
    (folder / "qrels.txt").write_text("".join(f"{pair.query_id} 0 {pair.doc_id} {pair.grade}\n" for pair in pairs))
    (folder / "idf.tsv").write_text("".join(f"{word}\t{idf}\n" for word, idf in model.design.idf.items()))
    return mi.collection(folder), str(folder / "idf.tsv")


def chain(seed: int, folder: Path, queries: int = 36) -> Run:
    model = planted.bm25(c=3.0, seed=seed, idf_scale=5.0, apart=True)
    (folder / "collection").mkdir()
    collection, idf = files(model, folder / "collection", queries)
    return mi.run("joint/pathway", model, collection, registry=folder / "registry", filler="in", idf=idf)


@pytest.mark.slow
def test_the_planted_circuit_is_linked_and_the_traps_are_named(tmp_path: Path) -> None:
    stored = chain(0, tmp_path)
    found = stored.summary[stored.summary["kind"] == "link"].set_index("site")
    heads = found[found.index.str.startswith("h")]
    assert heads["links"].to_dict() == {"h1.2": "tf", "h3.1": "scoring", "h0.0": "", "h2.3": ""}
    assert heads.loc[["h1.2", "h3.1"], "conflicts"].eq("").all()
    for trap in ("h0.0", "h2.3"):
        assert heads.loc[trap, "conflicts"].startswith(f"{FLAGGED}contrast, query<-doc")
    assert found.loc[["embed.u0", "embed.u1"], "links"].tolist() == ["idf", ""] and "embed.u2" not in found.index
    assert found.loc["embed.u0", "conflicts"] == "" and found.loc["embed.u0", "edit_attention"] > 0.05
    assert found.loc["embed.u1", "conflicts"].startswith("goes with IDF but causally dead: r with IDF 0.9")
    plan = stored.summary[stored.summary["kind"] == "plan"].set_index("measure")
    assert plan["value"].tolist() == [1, 1, 1] and (plan["p_corrected"] < 0.05).all()
    cuts = stored.summary[stored.summary["kind"] == "cut"].set_index(["set", "way", "measure"])
    assert set(cuts.index.get_level_values("set")) == {"matching", "linked to tf", "scoring", "all of these"}
    own = cuts.loc["linked to tf"]
    assert (own["site"] == "h1.2").all() and (own["queries"] == 12).all() and (own["p_draws"] == 1 / 21).all()
    assert (own["change"] < 0).all() and (own.xs(TERM, level="measure")["p_corrected"] < 0.05).all()
    drawn = pd.read_parquet(stored.path / "sets.parquet").query("set == 'linked to tf' and draw >= 0")["sites"]
    assert len(drawn) == 20 and drawn.str.startswith("h1.").all() and not (drawn == "h1.2").any()
    learned = {run.record["queries"] for run in runs(stored.path.parents[1]) if run.id != stored.id}
    assert max(learned) == 24  # nothing else has seen the last third
    told = shown("joint/pathway", stored.summary)
    assert len(told) == len(stored.summary) and {"kind", "p_draws"} <= set(told)
    found_ = mi.findings(
        measure="effect of a term without heads linked to tf, by zero", registry=stored.path.parents[1]
    )
    (cut,) = found_.to_dict("records")
    assert (cut["site"], cut["label"]) == (None, "h1.2") and cut["value"] < -0.02
    table = mi.links(registry=stored.path.parents[1])
    assert sorted(map(str, table["site"])) == sorted(found.index)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_seeds_have_no_other_link(seed: int, tmp_path: Path) -> None:
    summary = chain(seed, tmp_path).summary
    found = summary[summary["kind"] == "link"].set_index("site")
    linked = found.loc[found["links"] != "", "links"].to_dict()
    assert linked == {"h1.2": "tf", "h3.1": "scoring", "embed.u0": "idf"}
    assert found.loc[list(linked), "conflicts"].eq("").all()
    for trap, words in {"h0.0": FLAGGED, "h2.3": FLAGGED, "embed.u1": "goes with IDF but causally dead: "}.items():
        assert found.loc[trap, "conflicts"].startswith(words)


def test_run_alone_takes_the_whole_chain_and_says_where_nothing_is_linked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nine = tmp_path / "nine"
    nine.mkdir()
    texts = dict(line.split("\t") for line in (TOY / "docs.tsv").read_text().splitlines())
    queries = [line.split("\t")[1] for line in (TOY / "queries.tsv").read_text().splitlines()]
    (nine / "queries.tsv").write_text("".join(f"q{k}\t{queries[k % 6]}\n" for k in range(9)))
    (nine / "docs.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in texts.items()))
    judged = [(k, name, grade) for k in range(9) for grade, name in enumerate(list(texts)[3 * k : 3 * k + 3])]
    (nine / "qrels.txt").write_text("".join(f"q{k} 0 {name} {grade}\n" for k, name, grade in judged))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studentised, "RESAMPLES", 200)
    cli.main(["run", "--model", str(TOY_MODEL), "--collection", str(nine), "--draws", "2"])
    out, _ = capsys.readouterr()
    kept = runs(tmp_path / "mechir-registry")
    whole = next(run for run in kept if run.record["identity"]["experiment"] == "joint/pathway")
    plan = whole.summary[whole.summary["kind"] == "plan"]
    assert set(whole.summary["kind"]) == {"plan", "circuit"} and whole.record["queries"] == 3  # random: nothing holds
    circuits = whole.summary[whole.summary["kind"] == "circuit"]
    assert circuits["size"].is_monotonic_increasing and circuits["estimate"].iloc[-1] == pytest.approx(1, abs=1e-3)
    why = plan["label"].tolist()
    assert (plan["value"] == 0).all() and why[0] == why[2] and why[0].startswith("one more occurrence of a")
    assert why[1] == "what changing them does was not measured"  # no direction goes with IDF
    assert len(kept) >= 10 and len({run.record["identity"]["experiment"] for run in kept}) == len(kept)
    assert max(run.record["queries"] for run in kept) == 6
    per_pair = load_experiment("joint/pathway")(draws=2).cost(mi.load(TOY_MODEL))
    assert whole.record["forwards"] == per_pair * whole.record["pairs"], "known before anything was measured"
    assert "link to tf" in out and "Report: mechir-registry/report.html" in out.splitlines()
    assert "Is it term frequency?" in out and "heads are linked to term frequency" in " ".join(out.split())
    assert (tmp_path / "mechir-registry" / "report.html").is_file() and (whole.path / "chart.png").is_file()


def test_too_few_queries_or_grades_are_refused(tmp_path: Path) -> None:
    toy, pathway = mi.load(TOY_MODEL), load_experiment("joint/pathway")()
    with pytest.raises(
        MechirError, match="6 judged queries cannot both link heads and test them: a test needs 6 or more"
    ):
        mi.run("joint/pathway", toy, mi.collection(TOY), registry=tmp_path)
    alike = [mi.Pair("q", "d", f"q{k}", "d", 1) for k in range(9)]
    with pytest.raises(MechirError, match="All pairs have one grade, so nothing matches more than anything"):
        list(pathway._looks(alike))


def test_what_others_have_found_is_no_reason_for_a_link(tmp_path: Path) -> None:
    """Runs by hand may have seen the queries that are held out."""
    toy, collection, pathway = mi.load(TOY_MODEL), mi.collection(TOY), load_experiment("joint/pathway")(draws=2)
    ids = {"vast2025/attention_contrast": "a1", "chen2024/head_maps": "a2"}
    own = {
        "a1": [row(CONTRAST, "h1.1", 0.3, SURE), row(CONTRAST, "h0.0", 0.3, SURE)],
        "a2": [POSITIVE, row(PATCHING, "h1.1", 0.9, SURE), row(PATCHING, "h0.0", 0.0, NOT)],
    }
    by_hand = [row(PATCHING, "h1.1", 0.0, NOT), row(PATCHING, "h0.0", 0.9, SURE)]
    tell(tmp_path, "b1", by_hand, collection.id, model_fingerprint=toy.fingerprint, written="later")

    def finished(step: Experiment) -> Run:
        run = Run(tmp_path / "runs" / ids.get(step.name, "c1"))
        run.path.mkdir(parents=True, exist_ok=True)
        identity = {"experiment": step.name, "model_fingerprint": toy.fingerprint, "collection_sha256": ""}
        run.write_record({"identity": identity})
        if step.name in ids:
            tell(tmp_path, run.id, own[run.id], collection.id, model_fingerprint=toy.fingerprint)
        effects = [np.zeros(len(Graph.of(toy)), dtype=np.float32)]
        rows = pd.DataFrame({"query_id": ["q0"], "base": [0.0], "donor": [0.0], "effects": effects})
        run.write_part(0, rows, 0.0)
        return run

    pairs, said = [mi.Pair("q", "fish", f"q{k}", f"d{k}", k % 2) for k in range(9)], list[str]()
    names = {*ids, "circuits/edges"}
    steps = [mi.load_experiment(name)() for name in names]
    inputs = Inputs(toy, pairs, collection, Pool(), tmp_path, said.append, tuple(map(finished, steps)))
    ready, rest = pathway.prepare(inputs)
    assert [pair.query_id for pair in rest] == ["q6", "q7", "q8"]
    assert ready.frames["linked"].set_index("site")["links"].to_dict() == {"h1.1": "tf", "h0.0": ""}
    drawn = ready.frames["sets"]
    sets = drawn[drawn["draw"] < 0].set_index("set")["sites"].to_dict()
    assert sets == {"matching": "h0.0,h1.1", "linked to tf": "h1.1"} and said == []
    by_hand = as_text(mi.links(registry=tmp_path)).set_index("site")
    assert by_hand["exploratory"].to_dict() == {"h0.0": "tf", "h1.1": ""} and (by_hand["links"] == "").all()


def test_a_plan_that_is_tested_again_says_that_the_first_stands(tmp_path: Path) -> None:
    toy, collection, said = mi.load(TOY_MODEL), mi.collection(nine_queries(tmp_path / "toy")), list[str]()
    asked = {"filler": "a", "idf": "", "draws": 20, "seed": 0}
    identity = {"experiment": "joint/pathway", "model_fingerprint": toy.fingerprint, "options": asked}
    identity |= {"collection_sha256": collection.hash, "pool": vars(Pool()) | {"run": None}}
    first = open_run(tmp_path, identity, lambda run: run.write_record({"identity": identity, "asked": asked}))
    first.write_frame("summary", pd.DataFrame({"kind": ["plan"]}))
    pathway = load_experiment("joint/pathway")
    for experiment, pool, stands in (
        (pathway(), Pool(), 0),
        (pathway(seed=1), Pool(), 1),
        (pathway(), Pool(per_grade=1), 2),
    ):
        experiment._say_earlier(Inputs(toy, [], collection, pool, tmp_path, said.append))
        assert len(said) == stands
    assert said[0].startswith(f"A plan was tested on this model and collection before (run {first.id}) and stands")


def test_a_dry_run_says_what_can_be_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nine = nine_queries(tmp_path / "nine")
    cli.main(
        ["run", "--model", str(TOY_MODEL), "--collection", str(nine), "--dry-run", "--registry", str(tmp_path / "r")]
    )
    out, _ = capsys.readouterr()
    lines = out.splitlines()
    start = lines.index("What so many queries can find, four times in five:")
    assert lines[start + 1].split()[:4] == ["measure", "queries", "spread", "spread_90"]
    assert [line.split()[0] for line in lines[start + 2 :]] == ["vast2025/attention_contrast", "chen2024/head_maps"]
    assert "the first 6 queries" in out and not (tmp_path / "r").exists()
