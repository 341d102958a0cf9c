"""Are they the same components elsewhere? The findings and links of a registry across its collections and models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished, Inputs
from mechir.inference import holm
from mechir.methods.agreement import rank_agreement, sign_agreement
from mechir.methods.statistics import RESAMPLES
from mechir.options import frame, option
from mechir.pair import Pair
from mechir.registry.conflicts import conflicts
from mechir.registry.evidence import held
from mechir.registry.links import exploratory, linked, measured
from mechir.registry.names import model_name
from mechir.registry.queries import matching
from mechir.reranker import Reranker
from mechir.sites import is_head
from mechir.views import charts
from mechir.views.scatter import scatter

from .overlap import measured_by_both

WHERE = ["model", "model_fingerprint", "collection"]
HEAD = r"h(\d+)\.\d+"
NUMBERS = ["effect", "low", "high", "unit"]
FIRST = "run joint/pathway on another collection or model first"


@dataclass(frozen=True)
class Across(Experiment):
    """Are they the same components elsewhere? The findings and links of a registry across its collections and models.

    On one model a measure's values per head can be set side by side: Spearman's rho and the share of heads with the
    same sign on every two collections, and which components are linked on all of them or on some, with the conflicts.
    Heads of two models are not the same heads: of these the links are compared by how many there are, how deep they lie
    (layer / number of layers) and how large their effects are; `joint/across_models` aligns them. It reads the findings
    of the registry and runs nothing itself; the model and collection that it is given only own the run.

    The heads of a model are all there are: the intervals say how much rho hangs on single heads, and that of a share is
    Wilson's. They mislead as in `joint/overlap`: values that grow with depth everywhere agree by that alone. A
    component without a link may have had too few queries; only collections on which both sides of the rule were
    measured count.
    """

    examples = ("", "--draws 1000")
    forwards = 0.0

    draws: int = option(RESAMPLES, "pairings at random, and resamples", least=1)
    seed: int = option(0, "seed of what is drawn at random", least=0)
    heads: pd.DataFrame = frame()
    asked: pd.DataFrame = frame()
    links: pd.DataFrame = frame()

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """One pair, so that the run has a query; the findings on heads, the links that were tested and that hold."""
        registry = inputs.registry
        findings = held(matching(registry, newest=True))
        if len(findings[WHERE].drop_duplicates()) < 2:
            subject = f"{findings['model'].iloc[0]} on {findings['collection'].iloc[0]}"
            raise MechirError(
                f"All findings of '{registry}' are of {subject}, and two collections or models are needed: {FIRST}."
            )
        of_heads = is_head(findings["site"]) & ~findings["planned"]
        heads = findings[of_heads].sort_values([*WHERE, "measure", "site", "written"])
        heads = heads.drop_duplicates([*WHERE, "measure", "site"], keep="last")[[*WHERE, "measure", "site", "value"]]
        asked = pd.DataFrame(_asked(findings), columns=[*WHERE, "term"], dtype=str)
        if not (len(asked) or any(True for _ in _comparable(heads))):
            raise MechirError(
                f"The findings of '{registry}' hold no links, and no two collections share a measure: {FIRST}."
            )
        links = pd.DataFrame(_links(findings), columns=[*WHERE, "site", "term", *NUMBERS, "conflicts", "planned"])
        links = links.sort_values(["term", "site", *WHERE], ignore_index=True)
        return replace(self, heads=heads.reset_index(drop=True), asked=asked, links=links), inputs.material[:1]

    def measure(self, model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
        """The ids of the pair; everything is in the findings."""
        return pd.DataFrame(list(pairs))[["query_id", "doc_id", "grade"]]

    def summarise(self, run: Finished) -> pd.DataFrame:
        """Three kinds of rows, all with `kind` and `model`.

        "values", of one model: `measure`, `one`, `two` (collections), `n` heads; `rho` with `low`, `high`, `p`; `same`,
        the share of heads with the same sign, with `same_low`, `same_high`, `same_expected` by chance, `p_same`;
        `p_corrected` and `p_same_corrected` by Holm over all these rows.
        "links", a row per model, collection and term: `n` components linked; of the heads among them the mean `depth`
        in layers / number of layers, from `depth_low` to `depth_high`; the `effect` of the strongest, `site`, with its
        interval and `unit`.
        "component", a row per linked component and collection: `depth`, `effect`, `low`, `high`, `unit`; `on`, the
        collections that it is linked on; `where`: on "all" or "some" of the `asked` ones, "only asked here" for one;
        `conflicts`; `planned`, whether a plan concluded it.

        The number of layers is that of the findings: the last layer with a head in them.
        """
        values = pd.DataFrame(_values(self.heads, self.draws, self.seed))
        if len(values):
            values["p_corrected"] = holm(values["p"].to_numpy())
            values["p_same_corrected"] = holm(values["p_same"].to_numpy())
        components = _components(self.heads, self.asked, self.links)
        counts = pd.DataFrame(_counts(self.asked, components))
        return pd.concat([part for part in (values, counts, components) if len(part)], ignore_index=True)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """All rows, the sentences of conflicts left out."""
        first = ["kind", "model", "collection", "term", "measure", "one", "two", "site", "where", "n", "rho", "effect"]
        left = ["model_fingerprint", "conflicts", "p", "p_same", "same_expected", "depth_low", "depth_high", "on"]
        names = [name for name in first if name in summary]
        names += [name for name in summary if name not in (*first, *left)]
        shown = summary[names].astype({name: "Int64" for name in ("n", "asked") if name in summary})
        return shown.assign(model=shown["model"].map(model_name))

    def chart(self, summary: pd.DataFrame) -> Any:
        """Spearman's rho by measure and two collections; how deep the linked heads lie, or how many links there are."""
        several = summary["model_fingerprint"].nunique() > 1
        name = summary["model"] + " " + summary["model_fingerprint"].str[:6] + ", " if several else ""
        parts = []
        if len(values := summary[summary["kind"] == "values"]):
            names = name + summary["measure"] + ": " + summary["one"] + " and " + summary["two"]
            title = "Spearman's rho of the values of heads on two collections"
            parts.append(charts.bars(values.assign(of=names), "rho", "of", title=title, low="low", high="high"))
        on = name + summary.get("collection", pd.Series("", summary.index))
        deep = summary.get("depth", pd.Series(dtype=float)).notna()
        if len(heads := summary[(summary["kind"] == "component") & deep]):
            where = "layer / number of layers"
            shown = heads.rename(columns={"depth": where}).assign(on=on)
            title = "Linked heads: how deep they lie, and how large their effect"
            parts.append(scatter(shown, where, "effect", "on", title=title, label="site", column="term"))
        elif len(counts := summary[summary["kind"] == "links"]):
            shown = counts.assign(of=counts["term"] + ", " + on, n=counts["n"].astype(float))
            parts.append(charts.bars(shown, "n", "of", title="Linked components"))
        return parts[0] if len(parts) == 1 else charts.stacked(*parts)


def _asked(findings: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """The models and collections on which each link could have been found: both sides of its rule were measured."""
    for key, part in findings.groupby(WHERE):
        yield from ((*key, term) for term, sides in measured(part).items() if all(sides.values()))


def _links(findings: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Every link of every component, the causal finding behind it, and the conflicts there."""
    keys = [*WHERE, "site"]
    sentences = conflicts(findings).groupby(keys[1:])["conflict"].agg("; ".join).to_dict()
    for key, part in findings[findings.groupby(keys)["holds"].transform("any")].groupby(keys):
        rows = part.to_dict("records")
        for term, row in (exploratory(rows) | linked(rows)).items():
            numbers = (row[name] for name in ("value", "low", "high", "unit"))
            yield *key, term, *numbers, sentences.get(key[1:], ""), row["planned"]


def _comparable(heads: pd.DataFrame) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Every measure of a model on every two collections, and the values of the heads that both have."""
    keys = ["model", "model_fingerprint", "measure"]
    for key, part in heads.groupby(keys):
        wide = part.pivot(index="site", columns="collection", values="value")
        for first, second, both in measured_by_both(wide):
            row = dict(zip(keys, key, strict=True)) | {"one": first, "two": second, "n": len(both)}
            yield row, both[first].to_numpy(), both[second].to_numpy()


def _values(heads: pd.DataFrame, draws: int, seed: int) -> Iterator[dict[str, Any]]:
    for row, *sides in _comparable(heads):
        rank, sign = (agreement(*sides, draws=draws, seed=seed) for agreement in (rank_agreement, sign_agreement))
        row = {"kind": "values"} | row | {"rho": rank.value, "low": rank.low, "high": rank.high, "p": rank.p}
        row |= {"same": sign.value, "same_low": sign.low, "same_high": sign.high, "same_expected": sign.expected}
        yield row | {"p_same": sign.p}


def _components(heads: pd.DataFrame, asked: pd.DataFrame, links: pd.DataFrame) -> pd.DataFrame:
    """A row for each link of a component on a collection."""
    layers = heads["site"].str.extract(HEAD, expand=False).astype(int)
    n_layers = layers.groupby(heads["model_fingerprint"]).max() + 1
    layer = links["site"].str.extract(f"^{HEAD}$", expand=False).astype(float)
    keys = ["model_fingerprint", "term"]
    same = links.groupby([*keys, "site"])["collection"]
    n_on, on = same.transform("nunique"), same.transform(lambda names: ", ".join(sorted(set(names))))
    n_asked = asked.groupby(keys)["collection"].nunique().rename("asked").reset_index()
    n = links[keys].merge(n_asked, how="left")["asked"]
    where = np.select([n == 1, n_on == n], ["only asked here", "all"], "some")
    depth = layer / links["model_fingerprint"].map(n_layers)
    return links.assign(kind="component", depth=depth, on=on, asked=n, where=where)


def _counts(asked: pd.DataFrame, components: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for key in asked.to_dict("records"):
        here = components[(components[list(key)] == pd.Series(key)).all(axis=1)]
        row, depth = {"kind": "links"} | key | {"n": len(here)}, here["depth"]
        if depth.notna().any():
            row |= {"depth": depth.mean(), "depth_low": depth.min(), "depth_high": depth.max()}
        if len(here):
            strongest = here.loc[here["effect"].abs().idxmax()]
            row |= {name: strongest[name] for name in ("site", *NUMBERS)}
        yield row
