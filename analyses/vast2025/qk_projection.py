"""Does a head's alignment do anything? Its most aligned directions are taken out of its queries at run time.

The ten heads with the most aligned W_QK, and ten others drawn at random, each lose their k most aligned directions, and
k random ones twenty times over: a pattern or a spectrum says nothing of effect (extends Vast et al. 2025, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechir.errors import MechirError
from mechir.inference import mean_interval, means
from mechir.methods.checks import at_least, head_list
from mechir.methods.patching import heads_of
from mechir.methods.projection import ALIGNED, project_heads
from mechir.methods.spectra import qk_spectra
from mechir.pairs import Pair, first_of_each
from mechir.views import charts

ATTENTION, SCORE = "change of its attention to the document", "|change| of the score, logits"


def cost(
    model: Any, *, heads: str = "", strongest: int = 10, others: int = 10, draws: int = 20, **options: Any
) -> float:
    """Full forwards per pair that is taken: half of one per head and set of directions."""
    return 1 + 0.5 * (len(heads.split(",")) if heads else strongest + others) * (1 + draws)


def check(
    model: Any,
    pairs: Sequence[Pair],
    *,
    heads: str,
    strongest: int,
    others: int,
    k: int,
    draws: int,
    take: int,
    seed: int,
    same_queries: bool,
) -> dict[str, Any]:
    """Heads by layer; refuses what does not fit."""
    at_least(1, draws=draws, take=take)
    at_least(0, strongest=strongest, others=others, seed=seed)
    if not 1 <= k <= model.cfg.d_head:
        raise MechirError(f"--k is {k}: a head of this model has 1-{model.cfg.d_head} directions.")
    named = head_list(model, heads)
    if not (named or strongest or others):
        raise MechirError("--strongest and --others are both 0: write how many heads are taken, or name some.")
    return {"heads": named}


def measure(
    model: Any,
    pairs: Sequence[Pair],
    *,
    heads: str = "",
    strongest: int = 10,
    others: int = 10,
    k: int = 4,
    draws: int = 20,
    take: int = 1,
    seed: int = 0,
    same_queries: bool = False,
) -> pd.DataFrame:
    """`chosen` ("aligned", "random", "named"), `z`, and the columns of `project_heads`.

    `heads` with commas are taken in the place of the strongest and others; `take` pairs of each query and grade.
    `same_queries` says in the findings that the heads were chosen on queries that are measured, which flatters them.
    """
    picked = _picked(model, heads, strongest, others, seed)
    kept = first_of_each(pairs, take, by_grade=True)
    rows = project_heads(model, kept, picked["site"].tolist(), k=k, draws=draws)
    return picked.merge(rows, on="site")


def _picked(model: Any, heads: str, strongest: int, others: int, seed: int) -> pd.DataFrame:
    """The heads that are measured: `site`, `chosen`, `z`."""
    spectra = qk_spectra(model, draws=1)[["site", "z"]]
    if heads:
        named = pd.DataFrame({"site": list(map(str, heads_of(model, heads.split(",")))), "chosen": "named"})
        return named.merge(spectra, "left", on="site")
    spectra = spectra.dropna(subset="z").sort_values("z", ascending=False, ignore_index=True)
    rest = np.arange(min(strongest, len(spectra)), len(spectra))
    drawn = np.random.default_rng(seed).choice(rest, min(others, len(rest)), replace=False)
    picked = spectra.iloc[[*range(min(strongest, len(spectra))), *sorted(drawn.tolist())]]
    return picked.assign(chosen=np.where(np.arange(len(picked)) < strongest, "aligned", "random"))


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """One row per head: `chosen`, `z`, `queries`; for `score` and `attention` the change beside that of random sets.

    `score_aligned` is the mean over queries of the mean |change| of the score (logits) without the aligned directions,
    with `score_low` and `score_high`; `score_random` the mean over the random sets, `score_random_max` the largest of
    them; `score_p` = (1 + random sets at least as large) / (1 + sets). `score_excess` = aligned less the mean of the
    random sets, averaged over queries, with its interval, and `score_p_max` its two-sided p, corrected for all heads by
    sign flips of queries. The same for `attention`, where the mean signed change is given (negative: the match is lost)
    and `attention_p` counts falls as deep.
    """
    lines, excess = [], {}
    for (site, chosen, z), part in rows.groupby(["site", "chosen", "z"], sort=False, dropna=False):
        line: dict[str, Any] = {"site": site, "chosen": chosen, "z": z, "queries": part["query_id"].nunique()}
        for what, size in (("score", part["score_change"].abs()), ("attention", part["attention_change"])):
            told, excess[what, site] = _beside_random(part.assign(size=size), deeper=what == "attention")
            line |= {f"{what}_{name}": value for name, value in told.items()}
        lines.append(line)
    found = pd.DataFrame(lines)
    for what in ("score", "attention"):
        found[f"{what}_p_max"] = means(np.stack([excess[what, site] for site in found["site"]], 1)).p_corrected
    return found


def _beside_random(part: pd.DataFrame, *, deeper: bool) -> tuple[dict[str, float], np.ndarray]:
    """The means of one head, and its excess query by query; `deeper`: of the random sets the lowest is the extreme."""
    table = part.groupby(["directions", "query_id"], sort=False)["size"].mean().unstack(0)
    own, drawn = table[ALIGNED].to_numpy(), table.drop(columns=ALIGNED)
    random, beyond = drawn.mean().to_numpy(), own - drawn.mean(axis=1).to_numpy()
    as_far = random <= own.mean() if deeper else random >= own.mean()
    (low, high), (least, most) = mean_interval(own), mean_interval(beyond)
    told = {"aligned": own.mean(), "low": low, "high": high, "random": random.mean()}
    told |= {"random_max": random.min() if deeper else random.max(), "p": (1 + as_far.sum()) / (1 + len(random))}
    return told | {"excess": beyond.mean(), "excess_low": least, "excess_high": most}, beyond


def findings(summary: pd.DataFrame, *, same_queries: bool = False) -> pd.DataFrame:
    """What the aligned directions of a head's queries do beyond random ones: to its attention, and to the score."""
    label = "heads chosen on these queries" if same_queries else ""
    found = []
    for what, unit, sign, least in (("attention", "attention", -1, 0.005), ("score", "logits", 1, 0.01)):
        names = {f"{what}_excess": "value", f"{what}_excess_low": "low", f"{what}_excess_high": "high"}
        kept = summary.rename(columns=names | {f"{what}_p_max": "p_corrected", "queries": "n_queries"})
        kept = kept[["site", "value", "low", "high", "p_corrected", "n_queries"]]
        told = {"measure": f"{what} without aligned directions", "unit": unit, "sign": sign, "least": least}
        kept = kept.assign(**told, role="matching", causal=True, family=f"{len(kept)} heads, {what}")
        found.append(kept.assign(label=label))
    return pd.concat(found, ignore_index=True)


def chart(summary: pd.DataFrame) -> Any:
    """Fall of the matching attention against change of the score; named are heads that move it beyond chance."""
    named = (summary["score_excess"] > 0) & (summary["score_p_max"] < 0.05)
    return charts.scatter(
        summary.assign(named=named).rename(columns={"attention_aligned": ATTENTION, "score_aligned": SCORE}),
        ATTENTION,
        SCORE,
        "chosen",
        title="What a head's aligned directions do: mean changes without them",
        subtitle="named: the score moves more than without random directions, p < .05 over all heads",
        label="site",
        named="named",
    )
