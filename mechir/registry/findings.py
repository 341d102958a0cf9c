"""A finding: the value of one measure for one component of one model, from one run on one collection."""

from __future__ import annotations

import datetime
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

import pandas as pd

from mechir.circuits import Edge, parse_edge
from mechir.errors import MechirError
from mechir.interventions import RENORMALISED, Mask
from mechir.measures import refuse_unknown
from mechir.registry.names import collections_of
from mechir.reranker import score_parity
from mechir.sites import Singular, Site, parse_site


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Run `run_id` found that `site` of a model has `value` by `measure`, with its interval.

    Attributes:
        site: as it prints: h8.1, n5.1203, mlp3, attn3, resid0, embed.u0 (a left singular vector of W_E), an edge
            (h1.3->h8.1.q), a direction of attention (doc<-query, of layers doc<-query@0-5, cut before the softmax
            doc<-query renormalised); empty for a set of units.
        measure: the measure, with the parameters that differ from its defaults.
        value: in `unit`, signed; positive speaks for the role unless `sign` says otherwise.
        unit: of `value`, `low`, `high` and `least`.
        role: the role that it is evidence for or against, of `ROLES`, or empty.
        term: the part of BM25 that it is about, of `TERMS`, or empty.
        label: the experiment's name for the component, such as lexical.
        sign: 1 where a positive value speaks for the role, -1 where a negative one does, 0 where either does.
        causal: the component itself was changed, not only observed.
        least: |value| below this is called nothing, whatever p.
        low: the lower end of the 95 % interval of `value`.
        high: the upper end of it.
        effect: where `value` is a share, the same effect in logits.
        effect_low: the lower end of the 95 % interval of `effect`.
        effect_high: the upper end of it.
        p: of the test alone; missing where the measure has none.
        p_corrected: corrected for all of `family`.
        family: the tests that p was corrected over within the run, such as "72 heads".
        n_queries: queries that it was measured on; 0 for weights alone.
        n_pairs: pairs that it was measured on; 0 for weights alone.
        run_id: the run.
        experiment: the experiment of that run.
        model: its name.
        model_fingerprint: the SHA-256 of its weights and settings.
        model_revision: its revision on the hub, where it came from there.
        collection: its id, with more where two of a registry share it.
        collection_sha256: of its texts and judgments; of a published diagnostic set, of its texts.
        collection_full_name: its id with the folder above it; of a dataset its id.
        contrasts_sha256: of a run on contrasts, of the texts of both sides.
        parity: the largest relative difference of scores from Hugging Face's own model.
        seed: of everything drawn at random.
        written: when, in UTC.
    """

    site: str
    measure: str
    value: float
    unit: str
    role: str = ""
    term: str = ""
    label: str = ""
    sign: int = 1
    causal: bool = False
    least: float = 0.0
    low: float = math.nan
    high: float = math.nan
    effect: float = math.nan
    effect_low: float = math.nan
    effect_high: float = math.nan
    p: float = math.nan
    p_corrected: float = math.nan
    family: str = ""
    n_queries: int = 0
    n_pairs: int = 0
    run_id: str = ""
    experiment: str = ""
    model: str = ""
    model_fingerprint: str = ""
    model_revision: str = ""
    collection: str = ""
    collection_sha256: str = ""
    collection_full_name: str = ""
    contrasts_sha256: str = ""
    parity: float = math.nan
    seed: int = 0
    written: str = ""


COLUMNS: dict[str, Field[Any]] = {field.name: field for field in fields(Finding)}
MEANINGS = {
    name: " ".join(text.split())
    for name, text in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(Finding) or "", re.MULTILINE)
}
"""The meaning of each column, from the attributes of `Finding`."""
VIEW = ["site", "measure", "value", "low", "high", "unit", "p_corrected", "n_queries", "role", "term"]
VIEW += ["model", "collection"]
"""The columns that a terminal and a notebook show; files have all."""
TYPES = {"str": "str", "float": "float64", "int": "int64", "bool": "bool"}


def address(text: str) -> Site | Edge | Mask | None:
    """Parses the site of a finding: a site, an edge, or the mask of a direction; None for a set of units."""
    if not text:
        return None
    if "<-" in text:
        cut = text.removesuffix(RENORMALISED)
        return Mask.parse(cut, renormalise=cut != text)
    if text.startswith("embed.u") and text[7:].isdigit():
        return Singular(int(text[7:]))
    return parse_edge(text) if "->" in text else parse_site(text)


def printed(site: Any) -> str:
    """The text of a site as findings write it, from an object or from text; raises for anything but a site."""
    parsed = site if isinstance(site, Mask) else address(str(site))
    if isinstance(parsed, Mask) and parsed.heads:
        raise MechirError(f"There are no findings of {parsed!r}: of masks, those of whole layers are.")
    return str(parsed) if isinstance(parsed, Mask | Edge) else str(site)


def checked(frame: pd.DataFrame, of_run: Mapping[str, Any]) -> pd.DataFrame:
    """Completes an experiment's findings to the columns of `Finding`; rows without a value are left out.

    Args:
        frame: columns of `Finding`, those without a default at least; others are left out.
        of_run: `of_record`.

    Raises:
        MechirError: for a missing column, an unknown role, term or site, an infinite value.
    """
    missing = [name for name, field in COLUMNS.items() if field.default is MISSING and name not in frame]
    if missing:
        raise MechirError(f"These findings have no column '{missing[0]}': give {', '.join(missing)}.")
    whole = pd.DataFrame(index=range(len(frame)))
    for name, field in COLUMNS.items():
        default = of_run.get(name, field.default)
        column = pd.Series(frame[name].array if name in frame else default, index=whole.index)
        filled = column if default in (MISSING, math.nan) else column.fillna(default)
        whole[name] = filled.astype(TYPES[str(field.type)])
    for role, term in whole[["role", "term"]].drop_duplicates().itertuples(index=False):
        refuse_unknown(role, term)
    for site in whole["site"].unique():
        address(site)
    whole = whole[whole["value"].notna()].reset_index(drop=True)
    bad = whole[whole["value"].map(math.isinf)]
    if len(bad):
        raise MechirError(
            f"The value of {bad['site'].iloc[0]} by '{bad['measure'].iloc[0]}' is infinite: leave it out."
        )
    return whole


def placed(findings: pd.DataFrame, record: Mapping[str, Any]) -> pd.DataFrame:
    """Adds the hash and the full name of the collection that each finding names, for a run on several."""
    if "collection" not in findings:
        return findings
    known = pd.DataFrame(collections_of(record)).drop_duplicates("collection").set_index("collection")
    return findings.assign(**{name: findings["collection"].map(known[name]).fillna("") for name in known})


def of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that all findings of a run share, from its record; `axiom`: of a run on contrasts the diagnostic."""
    identity = record["identity"]
    return collections_of(record)[0] | {
        "experiment": identity.get("experiment", ""),
        "model_fingerprint": identity.get("model_fingerprint", ""),
        "contrasts_sha256": identity.get("collection_sha256", "") if "fillers" in identity else "",
        "axiom": identity.get("axiom", "") + (", swapped" if identity.get("swap") else ""),
        "run_id": record["id"],
        "n_queries": record["queries"],
        "n_pairs": record["pairs"],
        "model": record["model"],
        "model_revision": record.get("model_revision", ""),
        "parity": score_parity(record["certificate"]),
        "seed": seed_of(record),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def seed_of(record: Mapping[str, Any]) -> int:
    """The seed of the experiment's own draws, or else of its pairs or contrasts."""
    identity = record["identity"]
    drawn = identity.get("pool", {}) | record.get("given", {})
    return int(identity.get("options", {}).get("seed", drawn.get("seed", 0)))
