"""What findings are evidence of: which measures a link rests on, and when a finding holds."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from mechir.inference import LEVEL
from mechir.measures import (
    ATTENTION_UP_IDF,
    ATTENTION_WITHOUT,
    CONDUCTANCE,
    CONTRAST,
    IDF_WEIGHT,
    K1,
    LIKENESS,
    LINK_TO,
    PATCHING,
    PATH_TO_HEADS,
    PATH_TO_SCORE,
    QK_ALIGNMENT,
    R_IDF,
    RISE,
    SCORE_UP_IDF,
    TERMS,
    TEXT,
    WEIGHT,
    Measure,
)

TF = "tfc1"
"""The diagnostic that the links are about: one more occurrence of a query term."""
EVIDENCE = {
    "contrast": CONTRAST("query<-doc"),
    "contrast_back": CONTRAST("doc<-query"),
    "qk_alignment": QK_ALIGNMENT,
    "qk_causal": ATTENTION_WITHOUT,
    "rise": RISE,
    "k1": K1,
    "likeness": LIKENESS,
    "patching": PATCHING(TF, at=TEXT),
    "patching_all": PATCHING(TF),
    "to_context": PATH_TO_HEADS(TF, port="v"),
    "to_score": PATH_TO_SCORE(TF),
    "conductance": CONDUCTANCE("relevant"),
    "weight": WEIGHT,
    "idf_weight": IDF_WEIGHT,
    "r_idf": R_IDF,
    "edit_score": SCORE_UP_IDF,
    "edit_attention": ATTENTION_UP_IDF,
}
"""Columns of `links`, and the measures that they hold."""


@dataclass(frozen=True)
class Link:
    """What links a component to a part of BM25, or to the score.

    Attributes:
        name: as the table of links writes it: tf, idf, scoring.
        looks: by which measures a component looks the part; a plan reads the first. Empty where it need not look.
        acts: by which a plan tests what changing it does; the surest of them counts. Of other runs any causal finding
            of their role and term counts, and where the link is to the score, any by their measure.
        sites: the components that it is of, as a pattern of what they print as.
        called: what they are called.
        looking: how a component that looks the part is described.
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
        """The measure of what a plan concludes."""
        return LINK_TO(self.name)

    def looked(self, found: pd.DataFrame) -> pd.Series:
        """Which findings say what a component looks like."""
        chosen = [(found["role"] == one.role) & one.among(found["measure"]) for one in self.looks]
        return pd.concat(chosen, axis=1).any(axis=1) if chosen else pd.Series(False, found.index)

    def acted(self, found: pd.DataFrame) -> pd.Series:
        """Which findings say what changing a component does; conclusions are none."""
        of_role = (found["role"] == self.role) & (found["term"] == self.term)
        same = of_role if self.term else self.acts[0].family.among(found["measure"])
        return found["causal"].astype(bool) & same & ~LINK_TO.among(found["measure"])


HEADS, VECTORS = r"h\d+\.\d+", r"embed\.u\d+"
LINKS = (
    Link(
        "tf",
        looks=(CONTRAST("query<-doc"), CONTRAST("doc<-query")),
        acts=(PATCHING(TF, at=TEXT),),
        sites=HEADS,
        called="heads",
        looking="flagged by its pattern",
    ),
    Link("idf", (R_IDF,), (SCORE_UP_IDF, ATTENTION_UP_IDF), VECTORS, "directions", "goes with IDF"),
    Link("scoring", (), (PATH_TO_SCORE(TF),), HEADS, "heads"),
)
"""The links that are asked for, in the order in which they are told."""


def held(found: pd.DataFrame) -> pd.DataFrame:
    """The newest findings (`matching(..., newest=True)`) with `planned`, `p_all`, `holds`, `looks` and `acts`.

    `planned`: a conclusion of the first plan. `p_all` = p_corrected times `tries`, the number of different answers that
    runs gave to the same question; of what is planned p_corrected. `holds`: p_all is below `LEVEL`, |value| reaches
    `least`, and the sign speaks for it. `looks`, `acts`: the name of the link for which a finding says what the
    component looks like, or what changing it does; empty for none.
    """
    planned = LINK_TO.among(found["measure"])
    p_all = (found["p_corrected"] * found["tries"].where(~planned, 1)).clip(upper=1)
    speaks = (found["sign"] == 0) | (found["value"] * found["sign"] > 0)
    holds = (p_all < LEVEL) & (found["value"].abs() >= found["least"]) & speaks
    looks, acts = pd.Series("", found.index), pd.Series("", found.index)
    for link in LINKS:
        looks, acts = looks.mask(link.looked(found), link.name), acts.mask(link.acted(found), link.name)
    return found.assign(planned=planned, p_all=p_all, holds=holds, looks=looks, acts=acts)
