"""From matching to BM25 in one run: which heads match, is it TF, is IDF involved, does the ranking depend on it?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from mechir.contrasts import single_piece
from mechir.diagnostic_sets import diagnostic
from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished, Inputs, Step
from mechir.inference import FEWEST, LEVEL
from mechir.material import Pool, source_of
from mechir.measures import CONTRAST, LINK_TO, PATCHING, PATH_TO_SCORE, R_IDF, WITHOUT_HEADS, stated
from mechir.methods.checks import measures_there, relevant_there
from mechir.methods.cutting import called, cut_scores, cut_sets, cut_table, head_means, term_contrasts
from mechir.methods.evaluation import NDCG
from mechir.methods.planning import contrast_spreads, power_table, share_spreads
from mechir.options import BY_MEASURES, frame, option
from mechir.pair import Pair
from mechir.registry.evidence import held
from mechir.registry.links import BEHIND, link_table
from mechir.registry.plan import concluded
from mechir.registry.queries import matching
from mechir.registry.runs import finished_runs
from mechir.reranker import Weights
from mechir.sites import Head, is_head, parse_site
from mechir.views.scatter import scatter

from ..chen2024.head_maps import HeadMaps
from ..circuits.edges import Edges
from ..circuits.faithfulness import Faithfulness
from ..lu2025.head_to_heads import HeadToHeads
from ..lu2025.head_to_score import HeadToScore
from ..lu2025.idf_direction import IdfDirection
from ..lu2025.idf_edit import IdfEdit
from ..lu2025.semantic_bm25 import SemanticBm25
from ..lu2025.soft_tf import SoftTf
from ..vast2024.importance import Importance
from ..vast2025.attention_contrast import AttentionContrast
from ..vast2025.qk_projection import QkProjection
from ..vast2025.qk_svd import QkSvd
from .examples import Examples

CIRCUIT = "circuit"
"""The text of rows, and the kind of lines, that are of circuits."""
MATCHING, LINKED, SCORING, ALL = "matching", "linked to tf", "scoring", "all of these"
"""The sets of heads that are cut."""
LEARN = 2 / 3
"""The share of the queries that the links are found on."""
LEAST = 9
"""Queries that the chain takes: `FEWEST` to find links on, and three to cut them on."""
PER_GRADE = 2
"""Documents of each query and grade that a term is appended to for the deciding tests."""
DECIDING = (HeadMaps(at="query|doc"), HeadToScore())
"""The experiments on contrasts of term frequency that the plan reads: on all learning queries."""
EXPLORING = (HeadToHeads(ports=("v",)),)
"""Those that it does not read: on some."""
EDGES = Edges(sample=0)
"""The edges of term frequency, on all learning queries."""
CUT, EDITED, SHOWN = 3, 2, 12
"""Matching heads whose W_QK is cut; singular vectors that are edited; heads whose attention is stored to look at."""
SOME, FEW = 24, 12
"""Query limits for the costly experiments: paths and conductance; cuts of W_QK."""
PILOT = 8
"""Queries that a plan's power is estimated from, where no run is known."""
AT_MOST = {Importance: SOME, QkProjection: FEW}


@dataclass(frozen=True)
class Pathway(Experiment):
    """From matching to BM25 in one run: which heads match, is it TF, is IDF involved, does the ranking depend on it?

    Every experiment of the chain runs on the first two thirds of the queries: contrast, spectra, soft-TF, IDF, patching
    and paths to the scoring heads, conductance, semantic BM25. A plan that is written before anything is measured
    (`mechir.registry.plan`) concludes from their findings what is linked to tf, to idf and to the score; all else is
    exploratory. On the last third, which nothing has seen, the heads that match, those that are linked, those that
    write the score and all of them are cut, beside random sets of the same layers; and the model runs on the circuits
    of term frequency alone, the edges of the first two thirds.
    """

    tier = Weights
    examples = ("--limit-queries 20", "--dry-run")
    is_default = True
    reports = True
    figure = 1
    answers: ClassVar = {"plan": ()}
    embedded: ClassVar = {"limit_queries": 61, "per_grade": 2, "easy_negatives": 4}
    """All queries of the embedded collection, for tests need many, and few documents of each."""

    filler: str = option("a", "a word of one word piece that stands in for a term")
    idf: str = option("", "a table of lines word<TAB>idf; by default counted in the collection")
    draws: int = option(20, "random sets beside each set of heads, and random directions beside that of IDF", least=1)
    seed: int = option(0, "seed of what is drawn at random", least=0)
    evaluate: tuple[str, ...] = option((NDCG,), **BY_MEASURES)
    linked: pd.DataFrame = frame(derived=True)
    plan: pd.DataFrame = frame(derived=True)
    sets: pd.DataFrame = frame(derived=True)
    heads: pd.DataFrame = frame(derived=True)
    edges: pd.DataFrame = frame("edge", "estimate", "size", derived=True)

    def cost(self, model: Weights) -> float:
        """Full forwards per pair of the last queries, roughly: the sets of heads and the circuits."""
        return 25.0 + 9.0 * self.draws

    def measured(self, material: Sequence[Pair]) -> list[Pair]:
        """The pairs of the last queries, on which nothing is learned."""
        learning = set(list(dict.fromkeys(pair.query_id for pair in material))[: _learning(material)])
        return [pair for pair in material if pair.query_id not in learning]

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses what does not fit, also what an experiment of the chain would refuse on its queries."""
        model, pool = inputs.model, inputs.pool
        single_piece(model.tokenizer, self.filler)
        relevant_there(inputs.judged)
        n = _learning(inputs.material)
        for step in self._looks(inputs.material):
            source = source_of(step, inputs.source)
            some = replace(pool, limit_queries=min(n, AT_MOST.get(type(step), n)))
            step.check(replace(inputs, material=some.pairs(source), source=source, pool=some))
        return replace(self, evaluate=measures_there(inputs.judged, self.evaluate))

    def power(self, inputs: Inputs) -> pd.DataFrame:
        """The effects that the deciding tests can find on the learning queries: see `power_table`.

        `from`: the source of the spread, a run of this registry on the same model and collection, or the first queries,
        which are run for it.
        """
        model, n = inputs.model, _learning(inputs.material)
        some = list(dict.fromkeys(pair.query_id for pair in inputs.material))[: min(n, PILOT)]
        contrast = next(self._looks(inputs.material))
        assert isinstance(contrast, AttentionContrast)
        spreads, sources = {}, {}
        for step in (contrast, DECIDING[0]):
            known = (step.name, step.written, model.fingerprint, inputs.source.hash)
            earlier = next(iter(finished_runs(inputs.registry, *known)), None)
            if earlier is not None:
                rows = earlier.rows
            elif step is contrast:
                rows = step.measure(model, [pair for pair in inputs.material if pair.query_id in some])
            else:
                rows = step.measure(model, self._tfc1(inputs, len(some), 1).align(model).contrasts)
            spreads[step.name] = contrast_spreads(rows, contrast.grades) if step is contrast else share_spreads(rows)
            sources[step.name] = f"the first {len(some)} queries" if earlier is None else f"run {earlier.id}"
        table = power_table(spreads, {contrast.name: CONTRAST.least, DECIDING[0].name: PATCHING.least}, n)
        return table.assign(**{"from": table["measure"].map(sources)})

    def needs(self, inputs: Inputs) -> Sequence[Step]:
        """The experiments that look, the deciding and exploring ones and the edges; then what follows from them."""
        n, pairs = _learning(inputs.material), inputs.material
        first = [self._on_pairs(inputs, step) for step in self._looks(pairs)]
        for steps, queries, per_grade in ((DECIDING, n, PER_GRADE), (EXPLORING, min(n, SOME), 1), ((EDGES,), n, 1)):
            contrasts = self._tfc1(inputs, queries, per_grade)
            first += [inputs.step(step, contrasts, Pool()) for step in steps]
        if len(inputs.done) < len(first):
            return first
        looked = held(_findings(inputs, len(first)))
        return [*first, *(self._on_pairs(inputs, step) for step in self._acts(looked))]

    def follows(self, inputs: Inputs) -> Sequence[Step]:
        """The experiments on as many heads and vectors as there can be."""
        heads = tuple(Head(0, head) for head in range(min(CUT, inputs.model.cfg.n_heads)))
        edit: dict[str, Any] = {"heads": heads, "vector": 0, "idf": self.idf, "filler": self.filler}
        steps: list[Experiment] = [QkProjection(heads=heads, draws=self.draws, same_queries=True)]
        steps += [IdfEdit(factors=(), draws=self.draws, per_query=1, same_queries=True, **edit)] * EDITED
        return [self._on_pairs(inputs, step) for step in (*steps, Examples(heads=heads))]

    def _on_pairs(self, inputs: Inputs, step: Experiment) -> Step:
        """A step on pairs of the learning queries, a costly one on some of them."""
        n = _learning(inputs.material)
        return inputs.step(step, pool=replace(inputs.pool, limit_queries=min(n, AT_MOST.get(type(step), n))))

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """The pairs of the last queries; the conclusions of the plan on the first, the links, the sets to cut."""
        self._say_earlier(inputs)
        model, held_out = inputs.model, self.measured(inputs.material)
        findings = held(_findings(inputs, len(inputs.done)))
        (edges,) = (run for run in inputs.done if run.record["identity"]["experiment"] == EDGES.name)
        plan = concluded(findings)
        sets = cut_sets(model, _sets(findings, plan), self.draws, self.seed)
        last = {pair.query_id for pair in held_out}
        heads = head_means(model, [pair for pair in inputs.material if pair.query_id not in last])
        scored = self._faithfulness.on(model, edges.rows).scored
        linked = link_table(_with(findings, plan))
        ready = replace(self, linked=linked, plan=plan, sets=sets, heads=heads, edges=scored)
        return ready, held_out

    def measure(self, model: Weights, pairs: Sequence[Pair]) -> pd.DataFrame:
        """Scores of every pair, and of a term more, without each set of heads, and with each circuit alone.

        See `cut_scores`; the rows of `Faithfulness` have the text "circuit".
        """
        cut = cut_scores(model, pairs, self.sets, self.heads, self.filler)
        contrasts = term_contrasts(model, pairs, self.filler)
        if not contrasts:
            return cut
        return pd.concat([cut, self._faithfulness.measure(model, contrasts).assign(text=CIRCUIT)], ignore_index=True)

    @property
    def _faithfulness(self) -> Faithfulness:
        """The experiment on the circuits of term frequency."""
        asked = Faithfulness(draws=self.draws, seed=self.seed, evaluate=self.evaluate[0])
        return replace(asked, scored=self.edges)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """The links, the plan's verdicts on hypotheses, and the effect of cutting sets of heads on held-out queries.

        `kind` "link": the columns of `links`. "plan": `measure`, `value` (components linked), `p`, `p_corrected`,
        `label` (the reason where there are none). "cut": the columns of `cut_table`. "circuit": the lines of `size` of
        `Faithfulness`, on the held-out queries.
        """
        circuits = run.rows["text"] == CIRCUIT
        hypotheses = self.plan[self.plan["site"] == ""].assign(kind="plan")
        parts = [self.linked.assign(kind="link"), hypotheses]
        parts.append(cut_table(run.rows[~circuits], run.judged, self.sets, self.evaluate).assign(kind="cut"))
        if circuits.any():
            sizes = self._faithfulness.summarise(replace(run, rows=run.rows[circuits]))
            parts.append(sizes[sizes["kind"] == "size"].dropna(axis=1, how="all").assign(kind="circuit"))
        return pd.concat(parts, ignore_index=True)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The conclusions of the plan, and the loss on held-out queries without sets of heads, beyond random sets."""
        cuts = run.summary[run.summary["kind"] == "cut"]
        if cuts.empty:
            return self.plan
        measures = [WITHOUT_HEADS(called(row.measure), row.set, row.way) for row in cuts.itertuples()]
        lost = stated(cuts, measures, "excess", site="", label=cuts["site"], p=cuts["p_excess"])
        return pd.concat([self.plan, lost], ignore_index=True)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The links with the evidence that most have, the plan's verdicts, and the effect of cutting."""
        evidence = ["contrast", "rise", "patching", "to_score", "r_idf", "edit_score", "edit_attention"]
        plan = ["measure", "value", "p_corrected", "label"]
        cuts = ["set", "way", "heads", "intact", "change", "random", "excess", "p_draws", "queries"]
        circuits = ["size", "estimate", "random_high", "without"]
        names = ["kind", "site", "links", "exploratory", *BEHIND, *evidence, *cuts[:2], *plan, *cuts[2:], *circuits]
        shown = summary[[name for name in names if name in summary]].copy()
        shown["site"] = shown["site"].where(shown["kind"] == "link")
        return shown.astype({name: "Int64" for name in ("heads", "queries", "size") if name in shown})

    def chart(self, summary: pd.DataFrame) -> Any:
        """The heads of the table: their attention contrast against the effect of patching them."""
        x, y = "attention contrast", "effect of patching, share of the gap"
        heads = summary[(summary["kind"] == "link") & is_head(summary["site"])].dropna(subset=["contrast", "patching"])
        shown = heads.assign(links=heads["links"].replace("", "none")).rename(columns={"contrast": x, "patching": y})
        title = "Heads that match, and how much of the effect of term frequency passes through them"
        subtitle = "only heads whose contrast holds or that write the score; links as planned"
        return scatter(shown, x, y, "links", title=title, subtitle=subtitle, label="site")

    def _tfc1(self, inputs: Inputs, queries: int, per_grade: int) -> Any:
        """The diagnostic set: one more occurrence of a query term, in documents of so many queries."""
        pool: dict[str, Any] = {"limit_queries": queries, "per_grade": per_grade, "seed": self.seed}
        return diagnostic("tfc1", inputs.source, fillers=(self.filler,), model=inputs.model, **pool)

    def _say_earlier(self, inputs: Inputs) -> None:
        """Prints that the earliest plan with other options stands, where one was tested."""
        asked = {name: value for name, value in vars(inputs.pool).items() if name != "run"} | self.written
        asked["idf"] = self.idf and str(Path(self.idf).expanduser().resolve())
        runs = finished_runs(inputs.registry, self.name, {}, inputs.model.fingerprint, inputs.source.hash)
        for run in reversed(runs):
            before = run.record.get("asked", {}) | run.record["identity"]["pool"]
            if any(before[key] != value for key, value in asked.items() if key in before):
                inputs.say(
                    f"A plan was tested on this model and collection before (run {run.id}) and stands: what this one "
                    "concludes is recorded as exploratory."
                )
                return

    def _looks(self, pairs: Sequence[Pair]) -> Iterator[Experiment]:
        """The experiments on pairs that look for heads and directions."""
        grades = sorted({pair.grade for pair in pairs if pair.grade is not None})
        if len(grades) < 2:
            raise MechirError("All pairs have one grade, so nothing matches more than anything: add easy_negatives=10.")
        hard = 0 if 0 in grades[1:-1] else grades[0]  # without a grade between the two there are no hard negatives
        yield AttentionContrast(relevant=grades[-1], hard=hard, weak=grades[0])
        yield QkSvd(relevant=grades[-1], hard=hard, weak=grades[0])
        yield SoftTf(filler=self.filler, per_query=2)
        yield IdfDirection(idf=self.idf)
        yield SemanticBm25(idf=self.idf)
        yield Importance(take=1, tol=0.05)

    def _acts(self, findings: pd.DataFrame) -> Iterator[Experiment]:
        """The experiments that follow from the findings so far: on heads that match, write the score, or are shown."""
        table = link_table(findings)
        heads = table[is_head(table["site"])]
        matched = heads.dropna(subset="contrast").sort_values("contrast", key=abs, ascending=False, kind="stable")
        if len(matched):
            yield QkProjection(heads=_heads(matched["site"][:CUT]), draws=self.draws, same_queries=True)
        holding = findings[findings["holds"]]
        directions = holding[R_IDF.among(holding["measure"])]
        directions = directions.sort_values("value", key=abs, ascending=False, kind="stable")
        scoring = holding["site"][PATH_TO_SCORE.among(holding["measure"]) & is_head(holding["site"])]
        for vector in directions["site"][:EDITED].str.removeprefix("embed.u"):
            yield IdfEdit(
                heads=_heads(scoring),
                vector=int(vector),
                idf=self.idf,
                factors=(),
                draws=self.draws,
                per_query=1,
                filler=self.filler,
                same_queries=True,
            )
        if len(heads):
            yield Examples(heads=_heads(heads["site"][:SHOWN]))


def _findings(inputs: Inputs, first: int) -> pd.DataFrame:
    """The findings of the first runs of the chain: others of the registry may come from queries that are held out."""
    return matching(inputs.registry, runs=[run.id for run in inputs.done[:first]], newest=True)


def _heads(sites: pd.Series) -> tuple[Head, ...]:
    return tuple(site for site in map(parse_site, sites) if isinstance(site, Head))


def _learning(pairs: Sequence[Pair]) -> int:
    """The number of queries that the links are found on."""
    queries = len({pair.query_id for pair in pairs})
    if queries < LEAST:
        raise MechirError(
            f"{queries} judged queries cannot both link heads and test them: a test needs {FEWEST} or more, so "
            f"take {LEAST} or more."
        )
    return round(LEARN * queries)


def _with(findings: pd.DataFrame, plan: pd.DataFrame) -> pd.DataFrame:
    """The findings and the conclusions that the plan draws from them, `held`."""
    subject = findings[["model", "model_fingerprint", "collection"]][:1].to_dict("records")
    conclusions = plan.assign(sign=1, tries=1, **(subject[0] if subject else {}))
    every = pd.concat([findings.drop(columns=["planned", "p_all", "holds"]), conclusions], ignore_index=True)
    return held(every.fillna({"least": 0.0, "label": "", "run_id": ""}))


def _sets(findings: pd.DataFrame, plan: pd.DataFrame) -> dict[str, list[str]]:
    """The heads that match (lexical or semantic, or without kinds all whose contrast holds), and the linked."""
    looks = findings[CONTRAST("query<-doc").among(findings["measure"]) & findings["holds"] & (findings["value"] > 0)]
    kinds = looks[looks["label"].isin(["lexical", "semantic"])]
    linked = plan[(plan["site"] != "") & (plan["p_corrected"] < LEVEL)]
    sets = {MATCHING: (kinds if len(kinds) else looks)["site"].tolist()}
    for name, term in ((LINKED, "tf"), (SCORING, "scoring")):
        sets[name] = linked["site"][LINK_TO(term).among(linked["measure"])].tolist()
    return sets | {ALL: sorted(set().union(*sets.values()))}
