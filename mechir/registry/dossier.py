"""Everything that a registry knows of one component."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from mechir.registry.conflicts import conflicts
from mechir.registry.edge_roles import EdgeGraph
from mechir.registry.evidence import held
from mechir.registry.findings import address, printed
from mechir.registry.links import edge_verdicts, exploratory, linked
from mechir.registry.names import model_name
from mechir.registry.queries import matching
from mechir.registry.runs import DEFAULT
from mechir.views.tables import LINES, first_rows, terminal_width

SHOWN = ["measure", "value", "low", "high", "unit", "p_all", "holds", "n_queries", "collection"]
"""The columns of findings that a dossier prints."""
PRINTED: dict[str, Any] = {"index": False, "na_rep": "", "float_format": "{:.3g}".format}


@dataclass(frozen=True)
class Dossier:
    """The findings of one component, what they agree on, and where they disagree.

    `findings`: its rows, with `p_all` and `holds` (see `links`), missing where a newer run superseded them.
    `agreements` and `conflicts`: sentences, by model and collection.
    """

    site: Any
    findings: pd.DataFrame = field(repr=False)
    agreements: tuple[str, ...]
    conflicts: tuple[str, ...]

    def __str__(self) -> str:
        width = terminal_width()
        sentences = [textwrap.fill(text, width, subsequent_indent="    ") for text in self._sentences()]
        shown = first_rows(self.findings[SHOWN], width, len(self.findings) + LINES)
        return "\n".join([*sentences, shown.text])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        table = self.findings[SHOWN].to_html(**PRINTED, border=0)
        return "<br>\n".join([*map(escape, self._sentences()), table])

    def _sentences(self) -> list[str]:
        first = f"{self.site}: {len(self.findings)} findings of {self.findings['run_id'].nunique()} runs"
        return [first, *(f"  {text}" for text in self.agreements), *(f"  ! {text}" for text in self.conflicts)]


def dossier(
    site: Any, *, model: str | None = None, collection: str | None = None, registry: Path | str = DEFAULT
) -> Dossier:
    """Collects everything known of one component: `dossier("h8.1")`, or with a site.

    `site` is a site, an edge or a mask, or its text; `model` and `collection` as in `findings`, by default all;
    `registry` is where the runs are.

    Raises:
        MechirError: for a site of which there is no finding, with the closest.
    """
    text = printed(site)
    columns = {"collection": collection}
    rows = matching(Path(registry), columns | {"site": text}, model=model)
    newest = held(matching(Path(registry), columns, model=model, newest=True))
    here = newest[newest["site"] == text]
    verdicts = rows.merge(here[["run_id", "measure", "label", "collection", "p_all", "holds"]], "left")
    return Dossier(
        address(text),
        verdicts,
        (*agreements(here), *by_edges(here, newest)),
        tuple(dict.fromkeys(conflicts(here)["conflict"])),
    )


def by_edges(here: pd.DataFrame, newest: pd.DataFrame) -> tuple[str, ...]:
    """Sentences on what edges say of one component's roles, by model and collection; both frames are `held`."""
    sentences = []
    for keys, part in here.groupby(["model_fingerprint", "collection"], sort=False):
        around = newest[(newest["model_fingerprint"] == keys[0]) & (newest["collection"] == keys[1])]
        for role, verdict in edge_verdicts(part.to_dict("records"), EdgeGraph.of(around)).items():
            sentences.append(f"{role}: {verdict} by edges, {model_name(part['model'].iloc[0])} on {keys[1]}")
    return tuple(sentences)


def agreements(here: pd.DataFrame) -> tuple[str, ...]:
    """Describes the links of one component, by model and collection; `here`: its findings, `held`."""
    sentences = []
    for (_, collection), part in here.groupby(["model_fingerprint", "collection"], sort=False):
        model = model_name(part["model"].iloc[0])
        rows = part.to_dict("records")
        for kind, links in (("planned", linked(rows)), ("exploratory", exploratory(rows))):
            for name, row in links.items():
                link = f"linked to {name}" if name != "scoring" else "writes the score"
                times = f" over {row['tries']} tries" if row["tries"] > 1 and kind == "exploratory" else ""
                value = f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}] {row['unit']}"
                test = f"p = {row['p_all']:.2g}{times}, {row['n_queries']} queries"
                sentences.append(f"{link} ({kind}), {model} on {collection}: {row['measure']} {value}, {test}")
    return tuple(sentences)
