"""The measures that links rest on, and the rule by which a finding holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechir import measures as m
from mechir.inference import LEVEL
from mechir.measures import LINK_TO, TERMS, TEXT, Measure

TF = "tfc1"
"""The diagnostic of the links: one more occurrence of a query term."""
EVIDENCE = {
    "contrast": m.CONTRAST("query<-doc"),
    "contrast_back": m.CONTRAST("doc<-query"),
    "qk_alignment": m.QK_ALIGNMENT,
    "qk_causal": m.ATTENTION_WITHOUT,
    "rise": m.RISE,
    "k1": m.K1,
    "likeness": m.LIKENESS,
    "patching": m.PATCHING(TF, at=TEXT),
    "patching_all": m.PATCHING(TF),
    "to_context": m.PATH_TO_HEADS(TF, port="v"),
    "to_score": m.PATH_TO_SCORE(TF),
    "conductance": m.CONDUCTANCE("relevant"),
    "weight": m.WEIGHT,
    "idf_weight": m.IDF_WEIGHT,
    "r_idf": m.R_IDF,
    "edit_score": m.SCORE_UP_IDF,
    "edit_attention": m.ATTENTION_UP_IDF,
}
"""Columns of `links`, and the measures that they hold."""


@dataclass(frozen=True)
class Link:
    """A link of components to a part of BM25, or to the score.

    Attributes:
        name: as the table of links writes it: tf, idf, scoring.
        looks: measures of what a component looks like; a plan reads the first. Empty where looks do not matter.
        acts: measures by which a plan tests what changing it does; the surest counts. In other runs any causal finding
            of their role and term counts, and for the link to the score any by their measure.
        sites: the components that can have it, as a pattern of their texts.
        called: their plural.
        looking: the words for a component that looks the part.
    """

    name: str
    looks: tuple[Measure, ...]
    acts: tuple[Measure, ...]
    sites: str
    called: str
    looking: str = ""

    @property
    def role(self) -> str:
        """The role of its causal measures."""
        return self.acts[0].role

    @property
    def term(self) -> str:
        """The part of BM25; empty for the link to the score."""
        return self.name if self.name in TERMS else ""

    @property
    def conclusion(self) -> Measure:
        """The measure of a plan's conclusion."""
        return LINK_TO(self.name)

    def looked(self, findings: pd.DataFrame) -> pd.Series:
        """The findings that describe what a component looks like, as a mask."""
        looking = pd.Series(False, findings.index)
        for measure in self.looks:
            looking |= (findings["role"] == measure.role) & measure.among(findings["measure"])
        return looking

    def acted(self, findings: pd.DataFrame) -> pd.Series:
        """The findings that measure what changing a component does, without conclusions, as a mask."""
        of_role = (findings["role"] == self.role) & (findings["term"] == self.term)
        same = of_role if self.term else self.acts[0].family.among(findings["measure"])
        return findings["causal"].astype(bool) & same & ~LINK_TO.among(findings["measure"])


HEADS, VECTORS = r"h\d+\.\d+", r"embed\.u\d+"
CONTRASTS = (EVIDENCE["contrast"], EVIDENCE["contrast_back"])
LINKS = (
    Link("tf", CONTRASTS, (EVIDENCE["patching"],), HEADS, "heads", "flagged by its pattern"),
    Link("idf", (m.R_IDF,), (m.SCORE_UP_IDF, m.ATTENTION_UP_IDF), VECTORS, "directions", "goes with IDF"),
    Link("scoring", (), (m.PATH_TO_SCORE(TF),), HEADS, "heads"),
)
"""The links, in the order of the table."""


def with_interval(row: Any) -> str:
    """The value of a finding with its interval, where it has one: `0.3 [0.29, 0.31]`."""
    interval = f" [{row.low:.3g}, {row.high:.3g}]" if pd.notna(row.low) else ""
    return f"{row.value:.3g}{interval}"


def held(findings: pd.DataFrame) -> pd.DataFrame:
    """Adds `planned`, `p_all`, `holds`, `looks` and `acts` to the newest findings (`matching(..., newest=True)`).

    `planned`: a conclusion of the first plan. `p_all` = p_corrected times `tries`, the number of different answers that
    runs gave to the same question; for planned findings p_corrected. `holds`: p_all is below `LEVEL`, |value| reaches
    `least`, and the sign speaks for it. `looks`, `acts`: the name of the link for which a finding describes what the
    component looks like, or what changing it does; otherwise empty.
    """
    planned = LINK_TO.among(findings["measure"])
    p_all = (findings["p_corrected"] * findings["tries"].where(~planned, 1)).clip(upper=1)
    speaks = (findings["sign"] == 0) | (findings["value"] * findings["sign"] > 0)
    holds = (p_all < LEVEL) & (findings["value"].abs() >= findings["least"]) & speaks
    looks, acts = pd.Series("", findings.index), pd.Series("", findings.index)
    for link in LINKS:
        looks, acts = looks.mask(link.looked(findings), link.name), acts.mask(link.acted(findings), link.name)
    return findings.assign(planned=planned, p_all=p_all, holds=holds, looks=looks, acts=acts)
