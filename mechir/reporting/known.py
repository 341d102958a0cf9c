"""What is known of one model on one collection, and how it is asked for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechir.registry.links import ACTS
from mechir.registry.plan import GAP, LINK
from mechir.registry.runs import Run
from mechir.reporting.commands import flags
from mechir.reporting.sentences import Sentence


@dataclass(frozen=True)
class Known:
    """What is known of one model on one collection.

    `on`: the options of the command line that name both; `found`: its newest findings, `held`, sites as text; `links`:
    its rows of `links`; `conflicts`: its rows of `conflicts`; `pathway`: the run of `joint/pathway` whose plan counts,
    or None; `later`: those that tested a plan again.
    """

    on: Mapping[str, Any]
    found: pd.DataFrame
    links: pd.DataFrame
    conflicts: pd.DataFrame
    pathway: Run | None
    later: Sequence[str] = ()

    def of(self, role: str, begins: str = "", *, heads: bool = True) -> pd.DataFrame:
        """The findings of a role whose measure begins so, the largest |value| first; conclusions are none."""
        kept = self.found[(self.found["role"] == role) & self.found["measure"].str.startswith(begins)]
        kept = kept[~kept["planned"]]
        kept = kept[kept["site"].str.fullmatch(r"h\d+\.\d+")] if heads else kept
        return kept.loc[kept["value"].abs().sort_values(ascending=False, kind="stable").index]

    def acting(self, term: str) -> pd.DataFrame:
        """The causal findings of a term that a link to it may rest on."""
        kept = self.of(ACTS[term], heads=term != "idf")
        return kept[kept["causal"] & (kept["term"] == term)]

    def linked(self, term: str) -> pd.DataFrame:
        """The rows of `links` of components that are linked to a term: by the plan, where one was tested."""
        names = self.links["links" if self.planned else "exploratory"]
        return self.links.loc[[term in some.split(",") for some in names]]

    @property
    def planned(self) -> bool:
        """Whether a plan was tested."""
        return bool(self.found["planned"].any())

    def verdict(self, term: str) -> pd.Series | None:
        """What the plan says of a hypothesis; None where no plan was tested."""
        rows = self.found[self.found["planned"] & (self.found["site"] == "")]
        rows = rows[rows["measure"] == LINK + term]
        return rows.iloc[0] if len(rows) else None

    @property
    def gap(self) -> pd.Series | None:
        """What one more occurrence of a query term does to the score."""
        rows = self.found[self.found["measure"] == GAP]
        return rows.iloc[0] if len(rows) else None

    def not_measured(self, experiment: str, *options: str, tf: bool = False) -> Sentence:
        """That something was not measured, and the command that does."""
        return ["Not measured: run ", {"code": self.command(experiment, *options, tf=tf)}, "."]

    def command(self, experiment: str, *options: str, tf: bool = False) -> str:
        """The command that runs an experiment on this model and collection; `tf`: on contrasts of term frequency."""
        on = {"model": self.on["model"], "diagnostic": "tfc1" if tf else None, "collection": self.on["collection"]}
        return shlex.join(["mechir", "run", experiment, *flags(on), *options])
