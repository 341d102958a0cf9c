"""Are its heads there in another model? Aligned by some measures, tested on others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mechir.errors import MechirError, closest
from mechir.experiment import Experiment, Finished, Inputs
from mechir.inference import holm
from mechir.measures import LINK_TO
from mechir.methods.agreement import Agreement
from mechir.methods.alignment import Alignment, found_again, held_out, same_numbers
from mechir.methods.statistics import RESAMPLES
from mechir.options import frame, option
from mechir.pair import Pair
from mechir.registry.evidence import held
from mechir.registry.names import Named
from mechir.registry.queries import matching
from mechir.registry.runs import runs
from mechir.reranker import Reranker
from mechir.sites import is_head
from mechir.views import charts
from mechir.views.scatter import scatter

from ._two_models import KNOWN, LOOKS, NUMBER, Sides, changes, head_lines, layers_of, sides_of

FIRST = "run vast2025/attention_contrast and chen2024/head_maps on both models first"


@dataclass(frozen=True)
class AcrossModels(Experiment):
    """Are its heads there in another model? Aligned by some measures, tested on others.

    The findings of the registry on one collection are read, of this model and of every other one. Heads are aligned one
    to one by how they look (measures that only observe, such as attention contrast and soft-TF) and tested on what
    changing them does (causal measures, such as patching), and the other way round: what they were aligned by is no
    evidence. With `same`, models of one numbering are compared by number too: what changed, head by head.

    Agreement is Pearson's r over aligned heads, which few strong heads decide; chance deals the heads of the other
    model out anew within their layers, so that what only grows with depth agrees no more than chance. The interval is
    of aligned heads resampled: it says how much r hangs on single heads, not how sure the values are, and misleads
    where one or two matter. r says that heads that look alike act alike in both models, not that they are made alike.
    """

    examples = ("--same backbone", '--measures "contrast, query<-doc;patching, tfc1, at query|doc"')
    forwards = 0.0

    measures: tuple[str, ...] = option(
        (),
        "measures that count, as findings write them, with semicolons; by default those with a least value that counts",
        separator=";",
    )
    same: tuple[str, ...] = option(
        (), "other models whose heads have the numbers of this one's, such as a backbone and what was made of it"
    )
    draws: int = option(RESAMPLES, "deals at random, and resamples", least=1)
    seed: int = option(0, "seed of what is drawn at random", least=0)
    heads: pd.DataFrame = frame(*KNOWN)

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """One pair, so that the run has a query; the findings about heads, of this model first: `KNOWN`."""
        source, own = inputs.source, inputs.model.fingerprint
        on = {"collection": Named(source.id, source.full_name, source.hash)}
        try:
            findings = held(matching(inputs.registry, on, newest=True))
        except MechirError as error:
            raise MechirError(f"{error} There is nothing to compare: {FIRST}.") from error
        findings = findings[is_head(findings["site"]) & ~LINK_TO.among(findings["measure"])]
        known = sorted(findings["measure"].unique()) or ["none"]
        if wrong := [name for name in self.measures if name not in known]:
            raise MechirError(
                f"No head here has a finding by '{wrong[0]}': the closest are {closest(wrong[0], known)}."
            )
        material = {run.id: run.record["identity"].get("pairs_sha256", "") for run in runs(inputs.registry)}
        findings = findings[findings["measure"].isin(self.measures) if self.measures else findings["least"] > 0]
        findings = findings.rename(columns={"model_fingerprint": "fingerprint", "n_queries": "n"})
        findings = findings.assign(pairs=[material.get(run, "") for run in findings["run_id"]])
        findings = findings.sort_values("fingerprint", key=lambda column: column != own, kind="stable")
        heads = findings.drop_duplicates(["fingerprint", "measure", "site"])[KNOWN].reset_index(drop=True)
        sides = list(sides_of(heads)) if own in set(heads["fingerprint"]) else []
        if not sides:
            raise MechirError(
                f"On {source.id} no other model shares with this one a measure that observes its heads and one that "
                f"changes them: {FIRST}."
            )
        self._refuse_other_numbers(sides)
        return replace(self, heads=heads), inputs.material[:1]

    def _refuse_other_numbers(self, sides: Sequence[Sides]) -> None:
        """Raises for a model in `same` that is not there, or has other heads."""
        for name in self.same:
            side = next((side for side in sides if side.called([name])), None)
            if side is None:
                there = ", ".join(side.name for side in sides)
                raise MechirError(f"same={name} names no other model here: there are {there}.")
            if not side.one.index.equals(side.other.index):
                raise MechirError(
                    f"same={name} has {len(side.other)} heads and this model {len(side.one)}, so they are not of one "
                    "numbering: leave it out."
                )

    def measure(self, model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
        """The ids of the pair; everything is in the findings."""
        return pd.DataFrame(list(pairs))[["query_id", "doc_id", "grade"]]

    def summarise(self, run: Finished) -> pd.DataFrame:
        """Four kinds of rows, all with `kind`, `other` (a model) and `other_fingerprint`.

        "test": heads aligned `by` "looks", "acts" or "number", tested on `measure`: `n` aligned heads; `estimate` (r)
        with `low`, `high`; `expected` by chance within layers, its `p` and `p_corrected`; `p_any`, where chance is
        over all heads. Of the `holding` heads of this model of which a finding holds the share `found`, aligned with
        one of which it holds too, with `found_low`, `found_high`, `found_expected`, `found_p`, `found_p_corrected`.
        "numbers", of models in `same`: the share of heads aligned with their own number, a known answer.
        "head", a row per alignment, measure and head: `site`; `aligned`, at `distance`; `nearest`, whether or not
        another head is aligned with it; the `depth` of each (layer / number of layers); the value here as `estimate`,
        `low`, `high`, and there as `aligned_value`, with its interval; whether it `holds`, `aligned_holds`,
        `nearest_holds`.
        "change", of models in `same`, a row per measure and head: `n` queries; `value`, `other_value`; `estimate`,
        here less there, with `low`, `high`, `p`, `p_corrected`, where both were measured `on` "the same queries" in
        one unit. Both errors are taken to add up, whichever way they go together: cautious.

        p is corrected by Holm over all tests, the shares apart, over all rows of numbers, and over the changes from a
        model; it is one-sided but for changes.
        """
        parts: dict[str, list[dict[str, Any]]] = {"test": [], "numbers": [], "head": [], "change": []}
        for side in sides_of(self.heads):
            same = side.called(self.same)
            for by, aligned, measures, distance in side.alignments(same):
                parts["test"] += [self._test(side, aligned, name) | {"by": by} for name in measures]
                if distance is not None:
                    parts["head"] += [line | {"by": by} for line in head_lines(side, aligned, measures, distance)]
                    parts["numbers"] += [self._numbers(side, aligned) | {"by": by}] if same else []
            parts["change"] += list(changes(side)) if same else []
        tables = [pd.DataFrame(lines).assign(kind=kind) for kind, lines in parts.items() if lines]
        whole = pd.concat([_corrected(table) for table in tables], ignore_index=True)
        first = ["kind", "other", "by", "measure", "site", "aligned", "n", "estimate", "low", "high"]
        return whole[[*(name for name in first if name in whole), *(name for name in whole if name not in first)]]

    def _test(self, side: Sides, aligned: Alignment, measure: str) -> dict[str, Any]:
        """A row of kind "test"."""
        chance: dict[str, Any] = {"draws": self.draws, "seed": self.seed}
        values, layers = side.values(measure), layers_of(side.other.index)
        within = held_out(*values, aligned, among=layers, **chance)
        found = found_again(*side.holds(measure), aligned, among=layers, **chance)
        line = side.names | {"measure": measure, "n": len(aligned[0])} | _line(within)
        line |= {"p_any": held_out(*values, aligned, **chance).p, "holding": int(side.holds(measure)[0].sum())}
        line |= {"found": found.value, "found_low": found.low, "found_high": found.high}
        return line | {"found_expected": found.expected, "found_p": found.p}

    def _numbers(self, side: Sides, aligned: Alignment) -> dict[str, Any]:
        """A row of kind "numbers"."""
        layers = layers_of(side.other.index)
        share = same_numbers(aligned, among=layers, draws=self.draws, seed=self.seed)
        anywhere = same_numbers(aligned, draws=self.draws, seed=self.seed)
        return side.names | {"n": len(aligned[0])} | _line(share) | {"p_any": anywhere.p}

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The tests of aligned heads, and of those aligned by their looks the ones of which the measure holds."""
        tests = (summary["kind"] == "test") & (summary["by"] != NUMBER)
        of_heads = (summary["kind"] == "head") & (summary["by"] == LOOKS) & (summary["holds"] == True)  # noqa: E712
        rows = summary[tests | of_heads]
        names = ["kind", "other", "by", "measure", "n", "estimate", "low", "high", "expected", "p_corrected"]
        names += ["holding", "found", "found_low", "found_high", "found_expected", "site", "aligned"]
        names += ["aligned_value", "aligned_value_low", "aligned_value_high", "aligned_holds"]
        return rows[names].astype({"n": "Int64", "holding": "Int64"})

    def chart(self, summary: pd.DataFrame) -> Any:
        """Agreement in every test with its interval; then what the heads aligned by their looks do in both models."""
        tests = summary[summary["kind"] == "test"]
        of = tests["other"] + ", by " + tests["by"] + ": " + tests["measure"]
        title, lines = "Pearson's r of what was held out, over aligned heads", "line: 95 %, aligned heads resampled"
        shown = tests.rename(columns={"estimate": "r"}).assign(of=of)
        parts = [charts.bars(shown, "r", "of", title=title, subtitle=lines, low="low", high="high")]
        heads = summary[(summary["kind"] == "head") & (summary["by"] == LOOKS) & summary["aligned"].notna()]
        for (other, measure), rows in heads.groupby(["other", "measure"], sort=False):
            here, there = (rows[name].astype(bool) for name in ("holds", "aligned_holds"))
            both = np.select([here & there, here, there], ["in both", "here", "there"], "in neither")
            x, y = "this model", "the head aligned with it"
            shown = rows.rename(columns={"estimate": x, "aligned_value": y}).assign(holds=both, named=here | there)
            shown["pair"] = np.where(
                rows["site"] == rows["aligned"], rows["site"], rows["site"] + " " + rows["aligned"]
            )
            title = f"{measure}: heads of {other} aligned by their looks"
            points = scatter(shown, x, y, "holds", title=title, label="pair", named="named")
            parts.append(points)
        return charts.stacked(*parts)


def _line(agreement: Agreement) -> dict[str, Any]:
    """An agreement as columns."""
    return dict(zip(("estimate", "expected", "low", "high", "p"), agreement, strict=True))


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """Adds what Holm makes of p: of changes over those from one model, of other kinds over all rows."""
    for name in ("p", "found_p"):
        if name in table:
            family = table["other_fingerprint"] if table["kind"].iloc[0] == "change" else table["kind"]
            corrected = table.groupby(family)[name].transform(lambda p: holm(p.to_numpy()))
            table = table.assign(**{f"{name}_corrected": corrected})
    return table
