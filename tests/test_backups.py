"""Backup heads: found once the primary is gone, missed before; and what is no backup."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import mechir as mi
from mechir import planted
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.backups import Backups, backups
from mechir.methods.edge_backups import edge_backups
from mechir.methods.metrics import by_query
from mechir.pair import Pair
from tests.models import FAMILIES, PAIRS, Checkpoints
from tests.test_patching import CONTRASTS

MODEL = planted.bm25(c=3.0, backup=True)


def few(model: HookedEncoder, queries: int, counterfactual: str = "tf", each: int = 3) -> list[tuple[Pair, Pair]]:
    """Some pairs of every query."""
    pairs = planted.pairs(model, n=20 * queries, counterfactual=counterfactual)
    return [pair for place, pair in enumerate(pairs) if place % 20 < each]


@pytest.mark.parametrize("by", ["donor", "zero"])
@pytest.mark.parametrize("counterfactual", ["tf", "query"])
@pytest.mark.parametrize("c", [100.0, 3.0, 1.0])
def test_the_backup_shows_once_the_primary_is_gone(c: float, counterfactual: str, by: str) -> None:
    model = planted.bm25(c=c, backup=True)
    frame = backups(model, few(model, 8, counterfactual), "h1.2", by=by).frame
    backup = frame["candidate"] == "h1.0"
    assert len(frame) == 15 and backup.sum() == 1
    assert roc_auc_score(backup, frame["growth"]) == roc_auc_score(backup, frame["estimate"].abs()) == 1
    line, rest = frame[backup].iloc[0], frame[~backup]
    assert abs(line["removal"]) <= 0.02 and abs(line["single"]) <= 0.02
    assert line["conditional"] < -0.05 and line["high"] < -0.03 and line["p_corrected"] < 0.05
    assert abs(line["estimate"]) > {100.0: 150, 3.0: 20, 1.0: 15}[c] * rest["estimate"].abs().max()
    assert rest["single"].abs().max() > 10 * abs(line["single"])


@pytest.mark.parametrize("c", [100.0, 3.0, 1.0])
def test_patching_one_edge_at_a_time_misses_both_heads(c: float) -> None:
    """On the match of a query term gradients miss the backup as well; of its frequency they see half of each."""
    model = planted.bm25(c=c, backup=True)
    for counterfactual in ("tf", "query"):
        pairs = few(model, 6, counterfactual)
        edges = [mi.Edge(head, "mlp1") for head in ("h1.2", "h1.0")]
        exact, estimated = (mi.edges(model, pairs, method=method) for method in ("exact", "eap-ig"))
        primary, backup = exact.estimate[exact.graph.columns(edges)]
        assert max(abs(primary), abs(backup)) < 0.02
        size = np.abs(estimated.estimate[estimated.graph.columns(edges)])
        assert size[1] < 1e-3 if counterfactual == "query" else size[1] == pytest.approx(size[0], rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by", ["donor", "zero", "means"])
def test_effects_are_those_of_runs_one_by_one(checkpoints: Checkpoints, family: str, by: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    contrasts = CONTRASTS[::-1]
    bases, donors = [contrast.base for contrast in contrasts], [contrast.donor for contrast in contrasts]
    rows = by_query([contrast.query_id for contrast in contrasts])
    filling = {"means": mi.means(model, PAIRS)}.get(by)
    recorded = mi.record(model, donors, ["h0.1", "h1.2", "h1.0", "mlp1"])

    def scores(*sites: str) -> np.ndarray:
        do = [mi.Patch(recorded, site) if by == "donor" else mi.Ablate(site, filling) for site in sites]
        values = model.score(bases, do=do).numpy()
        return np.array([values[own].mean() for own in rows.values()])

    given = by if filling is None else filling
    both = backups(model, contrasts, ["h1.2", "h0.1+mlp1"], ["h1.0", "h0.1", "mlp1"], by=given)
    assert list(zip(both.primary, both.candidate, strict=True)) == [
        *(("h1.2", candidate) for candidate in ("h1.0", "h0.1", "mlp1")),
        ("h0.1+mlp1", "h1.0"),
    ]
    for column, (primary, candidate) in enumerate(zip(both.primary, both.candidate, strict=True)):
        gone = primary.split("+")
        expected = {
            "single": scores(candidate) - scores(),
            "conditional": scores(*gone, candidate) - scores(*gone),
            "removal": scores(*gone) - scores(),
        }
        for name, values in expected.items():
            assert both.query_ids == tuple(rows)
            np.testing.assert_allclose(getattr(both, name)[:, column], values, atol=2e-5)


def test_what_works_through_the_primary_is_no_backup() -> None:
    model = planted.bm25(c=3.0)
    frame = backups(model, few(model, 6), "h3.1").frame.set_index("candidate")
    line = frame.loc["h1.2"]
    assert line["single"] < -0.1 and abs(line["conditional"]) < 0.01
    assert line["estimate"] > 0.1 and line["growth"] < -0.1
    assert frame["growth"].max() < 0.02


def test_components_joined_by_a_plus_are_removed_together() -> None:
    """Without both matching heads nothing is left for the aggregator to add up."""
    pairs = few(MODEL, 6)
    both = backups(MODEL, pairs, ["h1.2+h1.0", "h1.2"], ["h1.0", "h3.1"]).frame
    assert both["primary"].tolist() == ["h1.0+h1.2", "h1.2", "h1.2"]
    assert both["candidate"].tolist() == ["h3.1", "h1.0", "h3.1"]
    assert abs(both["conditional"][0]) < 0.01 < 0.1 < abs(both["conditional"][2])


def test_the_rows_are_those_of_the_frame_by_query() -> None:
    both = backups(MODEL, few(MODEL, 6), ["h1.2", "h1.1"], ["h1.0", "h3.1"])
    assert both.rows.columns.tolist() == [
        *("primary", "candidate", "query_id", "removal", "single", "conditional", "estimate")
    ]
    means = both.rows.groupby(["primary", "candidate"], sort=False)["estimate"].mean()
    np.testing.assert_allclose(means, both.frame["estimate"], atol=1e-9)
    assert both.rows["query_id"].tolist() == 4 * [f"q{k}" for k in range(6)]
    assert set(both.rows.groupby("primary")["removal"].nunique()) == {6}


def test_a_metric_of_a_querys_scores() -> None:
    def spread(scores: torch.Tensor) -> torch.Tensor:
        return scores[..., 0] - scores[..., -1]

    pairs = few(MODEL, 6)
    bases = [base for base, _ in pairs]
    both = backups(MODEL, pairs, "h1.2", "h1.0", by="zero", metric=spread)
    gone = [MODEL.score(bases, do=mi.Ablate(sites)) for sites in (["h1.2", "h1.0"], "h1.2")]
    expected = [float(spread(gone[0][rows]) - spread(gone[1][rows])) for rows in torch.arange(18).split(3)]
    np.testing.assert_allclose(both.conditional[:, 0], expected, atol=1e-5)


def test_batches_do_not_matter() -> None:
    pairs = few(MODEL, 4)
    one, whole = (backups(MODEL, pairs, "h1.2", max_rows=rows).conditional for rows in (3, 256))
    np.testing.assert_allclose(one, whole, atol=1e-5)


WRONG = {
    **{
        f"{name} {given}": (
            {"primary": "h1.2", name: given},
            "5 is no component to remove: write heads (h8.1) and MLPs (mlp3).",
        )
        for name in ("primary", "candidates")
        for given in (5, [5])
    },
    "none": (
        {"primary": None},
        "backups needs what is removed first, for this model has 120 pairs of heads: give primary='h8.1', or the heads "
        "of a circuit, primary=scores.circuit(20).heads.",
    ),
    "empty": (
        {"primary": []},
        "backups needs what is removed first, for this model has 120 pairs of heads: give primary='h8.1', or the heads "
        "of a circuit, primary=scores.circuit(20).heads.",
    ),
    "part": ({"primary": "h1.2.q"}, "'h1.2.q' is no component to remove: write heads (h8.1) and MLPs (mlp3)."),
    "stream": ({"primary": "resid0"}, "'resid0' is no component to remove: write heads (h8.1) and MLPs (mlp3)."),
    "layer": ({"primary": "h9.2"}, "Layer 9 is out of range in 'blocks.9.attn.hook_z': the model has layers 0-3."),
    "head": (
        {"primary": "h1.2", "candidates": "h1.9"},
        "Head 9 is out of range: layer 1 has heads 0-3.",
    ),
    "itself": (
        {"primary": "h1.2", "candidates": "h1.2"},
        "Every candidate is part of the primary h1.2: give others, or leave candidates out for all heads.",
    ),
    "by": (
        {"primary": "h1.2", "by": "mean"},
        "Unknown by='mean': write 'donor' or 'zero', or means(model, pairs).",
    ),
    "metric": (
        {"primary": "h1.2", "metric": "ndcg"},
        "Unknown metric='ndcg': write 'score', or a function of a query's scores [..., contrast].",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused(case: str) -> None:
    options, message = WRONG[case]
    with pytest.raises(MechirError) as refused:
        backups(MODEL, planted.pairs(MODEL, n=2), **options)
    assert str(refused.value) == message


def test_no_contrasts_and_unequal_ones_are_refused() -> None:
    base, donor = planted.pairs(MODEL, n=1)[0]
    longer = Pair(donor.query, f"{donor.document} spruce", donor.query_id, donor.doc_id)
    with pytest.raises(MechirError, match="There are no contrasts to run"):
        backups(MODEL, [], "h1.2")
    with pytest.raises(MechirError, match="Pair q0/q0d0 is not aligned"):
        backups(MODEL, [(base, longer)], "h1.2")


def test_scores_that_are_not_finite_are_refused() -> None:
    model = planted.bm25(backup=True)
    with torch.no_grad():
        model.hf.classifier.weight.fill_(float("nan"))
    with pytest.raises(MechirError, match=r"The score of the base of .* is not finite: check the checkpoint\."):
        backups(model, planted.pairs(model, n=2), "h1.2")


@pytest.mark.parametrize("counterfactual", ["tf", "query"])
def test_the_backup_edge_shows_once_the_primary_edge_is_gone(counterfactual: str) -> None:
    pairs = few(MODEL, 8, counterfactual, each=2)
    others = ["h1.0->mlp1", "h1.1->mlp1", "resid0->h1.2.k", "h1.2->mlp1", "mlp1->h3.1.v"]
    frame = edge_backups(MODEL, pairs, "h1.2->mlp1", others).frame.set_index("candidate")
    line = frame.loc["h1.0->mlp1"]
    assert len(frame) == 4 and frame["growth"].idxmax() == "h1.0->mlp1"  # the primary has no line
    assert abs(line["single"]) < 0.02 and line["conditional"] < -0.05 and line["p_corrected"] < 0.05
    assert frame["growth"].drop("h1.0->mlp1").max() < 0.01


def test_backup_edges_are_runs_without_circuits() -> None:
    pairs = few(MODEL, 6, each=2)
    bases = [base for base, _ in pairs]
    frame = edge_backups(MODEL, pairs, ["h1.2->mlp1"], "h1.0->mlp1").frame.iloc[0]
    do = {name: mi.Without(edges, pairs) for name, edges in {"p": ["h1.2->mlp1"], "c": ["h1.0->mlp1"]}.items()}
    do["both"] = mi.Without(["h1.2->mlp1", "h1.0->mlp1"], pairs)
    mean = {name: MODEL.score(bases, do=edit).mean().item() for name, edit in do.items()} | {
        "": MODEL.score(bases).mean().item()
    }
    assert frame["removal"] == pytest.approx(mean["p"] - mean[""], abs=1e-5)
    assert frame["single"] == pytest.approx(mean["c"] - mean[""], abs=1e-5)
    assert frame["conditional"] == pytest.approx(mean["both"] - mean["p"], abs=1e-5)


def test_an_edge_is_no_backup_of_itself() -> None:
    with pytest.raises(MechirError, match=r"^There is no edge to remove beside the primary: give a primary edge and"):
        edge_backups(MODEL, few(MODEL, 2), "h1.2->mlp1", ["h1.2->mlp1"])


def test_rows_make_the_value_again() -> None:
    made = backups(MODEL, few(MODEL, 6), ["h1.2", "h3.1"], ["h1.0", "h2.3"])
    again = Backups.of(made.rows.sample(frac=1, random_state=0).sort_values("query_id", kind="stable"))
    assert set(again.frame.columns) == set(made.frame.columns) and again.query_ids == made.query_ids
    left, right = (each.frame.set_index(["primary", "candidate"]).sort_index() for each in (made, again))
    np.testing.assert_allclose(left, right)


def test_constant_metrics_and_unknown_options_are_refused() -> None:
    pairs = few(MODEL, 2)

    def constant(scores: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(scores[..., 0])

    for run, sites in ((backups, ("h1.2", "h1.0")), (edge_backups, ("h1.2->mlp1", "h1.0->mlp1"))):
        with pytest.raises(MechirError, match=r"^The metric is the same in every run, as of query q0: give one that"):
            run(MODEL, pairs, *sites, metric=constant)
    with pytest.raises(MechirError, match=r"^edge_backups has no option 'complement': write max_rows, max_tokens, "):
        edge_backups(MODEL, pairs, "h1.2->mlp1", "h1.0->mlp1", complement=True)
