"""Components cut together: what the ranking loses without these heads, neurons, layers or masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mechir.activations import means, samples
from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished, Inputs
from mechir.interventions import Ablate, Mask
from mechir.measures import WITHOUT_SET, stated
from mechir.methods.checks import measures_there, relevant_there
from mechir.methods.cut_ranking import WAYS, cut_table, filled, interventions, sets_of, ways_of
from mechir.methods.evaluation import NDCG, grouped, ranking_measures
from mechir.methods.query_groups import group_lines, query_groups, unmatched
from mechir.model_sites import heads_of, refuse_layers, sites_of
from mechir.options import BY_MEASURES, frame, option
from mechir.pair import Pair
from mechir.registry.evidence import held
from mechir.registry.queries import matching
from mechir.reranker import Reranker
from mechir.sites import Attn, Head, Mlp, Neuron, Site, parse_site
from mechir.sweeps import sweep
from mechir.views import charts

SHOWN = 8
"""Components that the chart names."""
RESAMPLED = 16
"""Positions of each segment that a resampled activation is drawn from."""


@dataclass(frozen=True)
class Cut(Experiment):
    """Cuts heads, neurons, layers or masks together and ranks anew: does the ranking depend on them, for which queries?

    What is cut is named (`--sites`, `--masks`), or taken from findings that hold (`--role matching --label lexical`).
    Beside it stand random sets with as many heads and neurons of every layer. Activations are replaced by zero, by
    their mean in the segment, and by those of other positions (resample). Findings on the same queries flatter the set:
    name sites that were found on others to say how large the loss is.
    """

    examples = (
        "--sites h1.1,h2.9 --limit-queries 10",
        "--masks 'doc<-query@h1.1' --evaluate 'RR(rel=2)@10' --limit-queries 10",
    )

    sites: tuple[Site, ...] = option((), "heads, neurons, MLPs or attention layers, such as h1.1,n3.17,mlp2")
    masks: tuple[str, ...] = option(
        (), "directions of attention, such as doc<-query@h1.1", separator=";", repeated=True
    )
    role: str = option("", "cut the components of findings in this role that hold, such as matching")
    label: str = option("", "and of these only findings with this label, such as lexical")
    term: str = option("", "and only those of this part of BM25, such as tf")
    evaluate: tuple[str, ...] = option((NDCG,), **BY_MEASURES)
    groups: str = option(
        "", "a file of lines query_id<TAB>group: effects by group, and their difference", reads=group_lines
    )
    ways: tuple[str, ...] = option(WAYS, "what takes the place of an activation", among=WAYS, not_empty="zero, mean")
    draws: int = option(20, "random sets beside it", least=1)
    seed: int = option(0, "of what is drawn at random", least=0)
    sets: pd.DataFrame = frame("set", "sites", "masks")
    filling: pd.DataFrame = frame("way", "recipe", "model", "hook", "shape", "values", derived=True)

    def cost(self, model: Reranker) -> float:
        """Full forwards per pair: the intact model, and every set in every way; means and samples beside it."""
        return 3.0 + len(self.ways) * (1 + self.draws)

    def check(self, inputs: Inputs) -> Experiment:
        """The components, the measures and the groups in normal form; refuses what does not fit."""
        relevant_there(inputs.judged)
        measures = measures_there(inputs.judged, self.evaluate)
        if self.groups:
            there = inputs.judged.drop_duplicates("query_id").set_index("query_id")
            grouped(there, query_groups(self.groups))
        of_findings = {"role": self.role, "label": self.label, "term": self.term}
        by_findings = any(of_findings.values())
        if not (self.sites or self.masks or by_findings):
            raise MechirError(
                "There is nothing to cut: name sites='h1.1,h2.9' or masks='doc<-query@h1.1', or findings, "
                "role='matching'."
            )
        if (self.sites or self.masks) and by_findings:
            raise MechirError(
                "sites= and masks= name what is cut, and so do role=, label= and term=: give one or the other."
            )
        sites = self.sites or (() if self.masks else _of_findings(inputs, of_findings))
        parsed = [_component(inputs.model, site) for site in sites]
        masks = [_mask(inputs.model, mask) for mask in self.masks]
        normal = replace(self, sites=tuple(parsed), masks=tuple(map(str, masks)), evaluate=measures)
        return replace(normal, role="", label="", term="")

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """The random sets, and the activations that are put in the place."""
        sets, notes = sets_of(inputs.model, self.sites, self.masks, self.draws, self.seed)
        for note in notes:
            inputs.say(f"random sets: {note}")
        if self.groups and (told := unmatched(query_groups(self.groups), inputs.judged["query_id"])):
            inputs.say(told)
        hooks = tuple(dict.fromkeys(site.hook.split(".", 2)[2] for site in self.sites))
        wanted = [way for way in ways_of(self.sites, self.ways) if way in ("mean", "resample")]
        frames = [_activations(inputs, way, hooks, self.seed).assign(way=way) for way in wanted]
        return replace(self, sets=sets, filling=pd.concat(frames) if frames else self.filling), inputs.material

    def measure(self, model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
        """Scores of every pair, intact and without each set: `name`, `query_id`, `doc_id`, `grade`, `score`."""
        return sweep(model, pairs, interventions(self.sets, ways_of(self.sites, self.ways), filled(self.filling)))

    def summarise(self, run: Finished) -> pd.DataFrame:
        """`cut_table`, with what was cut in `sites`."""
        groups = query_groups(self.groups) if self.groups else {}
        table = cut_table(run.rows, run.judged, ranking_measures(self.evaluate), groups, ways_of(self.sites, self.ways))
        return table.assign(sites=", ".join(map(str, [*self.sites, *self.masks])))

    def findings(self, run: Finished) -> pd.DataFrame:
        """The loss of the ranking, beyond that of random sets where there are any, of all queries."""
        whole = run.summary[run.summary["group"] == "all"]
        beyond = "excess" if "excess" in whole else "change"
        measures = [WITHOUT_SET(row.measure, row.sites, row.way) for row in whole.itertuples()]
        units = whole["measure"] + (" beyond random sets" if beyond == "excess" else "")
        family = f"{len(run.summary)} rows"
        return stated(whole, measures, beyond, site="", unit=units, label=whole["sites"], family=family)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The change beside that of random sets, by measure, group and way."""
        names = [
            "measure",
            "group",
            "way",
            "queries",
            "change",
            "change_low",
            "change_high",
            "change_p",
            "random",
            "p_draws",
        ]
        return summary[[name for name in names if name in summary]]

    def chart(self, summary: pd.DataFrame) -> Any:
        """The change of each group of queries, and their differences, one bar a way, with its interval."""
        parts = {name: summary[name].astype(str) for name in ("measure", "group", "way")}
        varied = [values for values in parts.values() if values.nunique() > 1] or [parts["group"]]
        shared = [values.iloc[0] for name, values in parts.items() if values.nunique() == 1 and name != "group"]
        names = [", ".join(words) for words in zip(*varied, strict=True)]
        cut = summary["sites"].iloc[0].split(", ")
        some = ", ".join(cut[:SHOWN]) + (f" and {len(cut) - SHOWN} more" if len(cut) > SHOWN else "")
        of = f" ({', '.join(shared)})" if shared else ""
        title = f"Change of the ranking without a set{of}"
        subtitle = f"without {some}; 95 % intervals over queries"
        return charts.bars(
            summary.assign(cut=names), "change", "cut", title=title, subtitle=subtitle,
            low="change_low", high="change_high",
        )  # fmt: skip


def _component(model: Reranker, named: Site) -> Site:
    """A component of the model; raises for anything else."""
    try:
        (site,) = sites_of(model, Ablate(named).sites)
    except MechirError as error:
        raise MechirError(f"Cannot cut sites='{named}': {error}") from error
    return site


def _mask(model: Reranker, text: str) -> Mask:
    """A mask of the model's heads or layers; raises for anything else."""
    try:
        mask = Mask.parse(text)
        heads_of(model, mask.heads or "h0.0")
        refuse_layers(model, mask.layers)
    except MechirError as error:
        raise MechirError(f"Cannot cut masks='{text}': {error}") from error
    return mask


def _of_findings(inputs: Inputs, named: Mapping[str, str]) -> tuple[Site, ...]:
    """The components of the findings that hold for this model, by their role, label and term.

    Those on this collection, or else on the only other one; raises for findings on several.
    """
    filters = {name: value for name, value in named.items() if value}
    rows = held(matching(inputs.registry, filters, model=inputs.model.fingerprint, newest=True))
    holding, said = rows[rows["holds"]], ", ".join(f"{name}='{value}'" for name, value in filters.items())
    here, collections = holding["collection_sha256"] == inputs.source.hash, list(holding["collection"].unique())
    if not here.any() and len(collections) > 1:
        raise MechirError(
            f"Findings of {said} hold on {len(collections)} collections here ({', '.join(collections)}): name sites=, "
            "or ask a registry that holds one of them."
        )
    chosen = holding[here] if here.any() else holding
    sites = []
    for text in dict.fromkeys(chosen["site"]):
        try:
            site = parse_site(text)
        except MechirError:
            continue  # a direction, an edge, or a set, which is no component
        if isinstance(site, Head | Neuron | Mlp | Attn) and getattr(site, "part", "z") in ("z", "out"):
            sites.append(site)
    if not sites:
        raise MechirError(f"No finding of {said} on this model holds for a head, neuron or layer: name sites=.")
    runs = ", ".join(run[:8] for run in chosen["run_id"].unique())
    where = "; found on these queries, which flatters what they do" if here.any() else ""
    inputs.say(f"cut: {', '.join(map(str, sites))} (run {runs} on {', '.join(chosen['collection'].unique())}{where})")
    return tuple(sites)


def _activations(inputs: Inputs, way: str, hooks: tuple[str, ...], seed: int) -> pd.DataFrame:
    """The mean of each segment, or activations of other positions, of these hooks."""
    if way == "mean":
        return means(inputs.model, inputs.material, hooks=hooks).frame()
    return samples(inputs.model, inputs.material, draws=RESAMPLED, seed=seed, hooks=hooks).frame()
