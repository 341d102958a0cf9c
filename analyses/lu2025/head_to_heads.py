"""Which heads the scoring heads listen to: paths from every earlier head into their queries, keys and values.

Scoring heads are found by the run, not named: on one query in three the heads with the largest effect along
head -> score are taken, and the paths into them are measured on the other queries. Of each port (q, k, v) the inputs of
all scoring heads are replaced together (Lu et al. 2025, arXiv:2502.04645; Wang et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.contrasts import Contrast
from mechir.methods import effects
from mechir.methods.checks import SELECTION, heads_or_search, word_list
from mechir.methods.patching import all_heads, largest
from mechir.methods.paths import PORTS, path_patch
from mechir.pairs import split_queries
from mechir.views import charts


def cost(model: Any, *, ports: str = "q,k,v", **options: Any) -> float:
    """Full forwards per contrast: for each sender the MLPs up to the receivers and the layers after."""
    return 2 + 0.4 * len(ports.split(",")) * (model.cfg.n_layers - 1) * model.cfg.n_heads


def check(model: Any, contrasts: Sequence[Contrast], *, receivers: str, top: int, ports: str) -> dict[str, Any]:
    """Heads by layer and ports in their order; refuses what does not fit."""
    heads = heads_or_search(model, contrasts, receivers, "receivers", top=top)
    return {"receivers": heads, "ports": word_list(ports.lower(), "ports", PORTS)}


def prepare(
    model: Any, contrasts: list[Contrast], *, receivers: str = "", top: int = 4, **options: Any
) -> tuple[list[Contrast], dict[str, str]]:
    """The contrasts left to measure, and the scoring heads found on the others."""
    if receivers:
        return contrasts, {}
    chosen, rest = split_queries(contrasts, SELECTION)
    return rest, {"receivers": ",".join(largest(path_patch(model, chosen, all_heads(model)), "sender", top))}


def measure(
    model: Any, contrasts: Sequence[Contrast], *, receivers: str = "", top: int = 4, ports: str = "q,k,v"
) -> pd.DataFrame:
    """`port`, `sender`, ids, scores, `effect`, `departure`.

    `receivers` are heads with commas (h10.1,h10.4), found by the run where none are given, `top` of them; `ports` are
    which of their inputs are replaced, each by itself.
    """
    found = [
        path_patch(model, contrasts, receiver=[f"{head}.{port}" for head in receivers.split(",")]).assign(port=port)
        for port in ports.split(",")
    ]
    rows = pd.concat(found, ignore_index=True)
    return rows[["port", *(name for name in rows.columns if name != "port")]]


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """One line per edge, with its port: see `effects.table`. `p_max` is over all edges together."""
    return effects.table(rows, ["port", "edge", "sender"]).sort_values(
        "estimate", key=abs, ascending=False, ignore_index=True
    )


def findings(summary: pd.DataFrame, axiom: str) -> pd.DataFrame:
    """The effect of every sender by way of one port of the scoring heads, corrected over all paths."""
    found = effects.stated(summary, "path into the scoring heads", axiom, "sender")
    into = summary["edge"].str.partition("->")[2].str.replace(r"\.[qkv]\b", "", regex=True)
    return found.assign(
        measure=found["measure"] + ", by " + summary["port"], label="into " + into, role="query-context"
    )


def chart(summary: pd.DataFrame) -> Any:
    """Layer x head of the senders, a panel per port."""
    receivers = summary["edge"].iloc[0].partition("->")[2].split("+")
    named = ", ".join(receiver.rpartition(".")[0] for receiver in receivers)
    return charts.head_map(summary, "sender", title=f"Effect on the score along head -> {named}", column="port")
