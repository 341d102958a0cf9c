"""The findings of one model on one collection, and the commands that measure more."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechir.catalog import answering
from mechir.measures import GAP, LINK_TO, Measure
from mechir.registry.evidence import HEADS, LINKS, TF
from mechir.registry.runs import Run
from mechir.reporting.commands import flags
from mechir.reporting.sentences import Sentence


@dataclass(frozen=True)
class Known:
    """The findings of one model on one collection.

    `on`: the options of the command line that name both; `findings`: its newest ones, `held`, sites as text; `links`
    and `conflicts`: its rows of these tables; `pathway`: the run whose plan counts, or None; `later`: ids of runs that
    tested a plan again.
    """

    on: Mapping[str, Any]
    findings: pd.DataFrame
    links: pd.DataFrame
    conflicts: pd.DataFrame
    pathway: Run | None
    later: Sequence[str] = ()

    def by_measure(self, measure: Measure) -> pd.DataFrame:
        """The findings of heads by a measure, the largest |value| first."""
        of_heads = self.findings["site"].str.fullmatch(HEADS) & (self.findings["role"] == measure.role)
        return self._largest_first(of_heads & measure.among(self.findings["measure"]))

    def side(self, name: str, side: str) -> pd.DataFrame:
        """The findings that a link may rest on, the largest |value| first; `side`: `looks` or `acts`."""
        sites = next(link.sites for link in LINKS if link.name == name)
        return self._largest_first((self.findings[side] == name) & self.findings["site"].str.fullmatch(sites))

    def _largest_first(self, mask: pd.Series) -> pd.DataFrame:
        return self.findings[mask].sort_values("value", key=abs, ascending=False, kind="stable")

    def linked(self, term: str) -> pd.DataFrame:
        """The rows of `links` of components that are linked to a term: by the plan, where one was tested."""
        names = self.links["links" if self.planned else "exploratory"]
        return self.links.loc[[term in text.split(",") for text in names]]

    @property
    def planned(self) -> bool:
        """Whether a plan was tested."""
        return bool(self.findings["planned"].any())

    @property
    def kind(self) -> str:
        """Whether links are planned or exploratory."""
        return "planned" if self.planned else "exploratory"

    def why(self, term: str) -> str | None:
        """The plan's reason why nothing is linked to a term, or an empty text; None where no plan was tested."""
        rows = self.findings[self.findings["planned"] & (self.findings["site"] == "")]
        return next(iter(rows.loc[LINK_TO(term).among(rows["measure"]), "label"]), None)

    @property
    def gap(self) -> pd.Series | None:
        """The finding on one more occurrence of a query term and the score."""
        rows = self.findings[GAP(TF).among(self.findings["measure"])]
        return rows.iloc[0] if len(rows) else None

    def to_measure(self, question: str) -> Sentence:
        """The command that measures what was not measured."""
        return ["Run ", {"code": self.command(question)}, "."]

    def command(self, question: str) -> str:
        """The command that answers a question (`Experiment.answers`) for this model and collection."""
        experiment = answering(question)
        diagnostic = TF if experiment.runs_on == "contrasts" else None
        on = {"model": self.on["model"], "diagnostic": diagnostic, "collection": self.on["collection"]}
        return shlex.join(["mechir", "run", experiment.name, *flags(on), *experiment.answers[question]])
