"""The effects of edges as they were measured: on every contrast, with intervals and tests over queries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats

from mechir import inference
from mechir.circuits import Circuit
from mechir.contrasts import ROLES
from mechir.errors import MechirError, refuse_other_than_whole
from mechir.methods.edge_graph import Graph
from mechir.methods.edge_streams import LN
from mechir.methods.metrics import means_by_query

FEWEST_EDGES = 3
"""Edges below which there is no correlation."""
ROUNDING = 1e-5
"""An exact effect below this is what float32 makes of none."""
METHODS = ("exact", "eap", "eap-ig", "screen")
POINTS = ("base", "donor")


@dataclass(frozen=True)
class Way:
    """How edges are scored.

    Args:
        method: "exact" patches every edge, LayerNorms live. "eap": first order, gradients at one point. "eap-ig": the
            mean of the gradients at `points` points between the donor's embeddings and the base's. "screen": "eap-ig"
            for all edges, then "exact" for the largest, and for as many of the others drawn at random.
        ln: how a change goes through the LayerNorms on its way, for gradients: see `edge_streams`.
        point: where "eap" takes the gradients.
        points: of "eap-ig": midpoints of as many equal steps.
        qk_fix: put changed queries and keys through the softmax exactly, and linearise after it.
        top: of "screen": the share of edges patched, the largest by |mean estimate|.
        seed: of the draw of "screen".

    Raises:
        MechirError: for an unknown word or a number out of range.
    """

    method: str = "eap-ig"
    ln: str = "frozen"
    point: str = "base"
    points: int = 5
    qk_fix: bool = False
    top: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("ln", LN), ("point", POINTS)):
            if getattr(self, name) not in known:
                raise MechirError(f"Unknown {name}='{getattr(self, name)}': write {' or '.join(map(repr, known))}.")
        refuse_other_than_whole(1, points=self.points)
        refuse_other_than_whole(0, seed=self.seed)
        if not isinstance(self.qk_fix, bool):
            raise MechirError(f"qk_fix={self.qk_fix!r:.40} is neither: write True or False.")
        if self.method == "exact" and (self.qk_fix or self.ln in ("jacobian", "none")):
            given = "qk_fix=True" if self.qk_fix else f"ln='{self.ln}'"
            raise MechirError(f"{given} belongs to gradients, and method='exact' has none: leave it out.")
        if isinstance(self.top, bool) or not isinstance(self.top, Real) or not 0 < self.top <= 1:
            raise MechirError(f"top={self.top!r:.40} is no fraction: write e.g. top=0.05.")
        if self.point != "base" and self.method != "eap":
            raise MechirError(f"point='{self.point}' belongs to method='eap', and this is '{self.method}'.")

    @property
    def places(self) -> list[float]:
        """Where gradients are taken, from 0 (the base's embeddings) to 1 (the donor's)."""
        if self.method == "exact":
            return []
        if self.method == "eap":
            return [float(self.point == "donor")]
        return [(step + 0.5) / self.points for step in range(self.points)]


class Agreement(NamedTuple):
    """How well estimates agree with exact effects, on edges drawn at random: r, rho, and how many signs differ.

    `signs`: edges whose exact effect is more than rounding (1e-5) and whose estimate has the other sign, or none.
    """

    pearson: float
    spearman: float
    signs: int
    edges: int


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """The effect of every edge on every contrast.

    Attributes:
        graph: the edges, `graph.edges`, in the order of the columns.
        query_ids: the query of each row, a contrast, in the order in which these were given.
        values: the effects; a query's is the mean over its contrasts.
        base: the score of each base.
        donor: that of each donor.
        way: how edges were scored.
        patched: of "screen": the columns whose values are exact; None where all are of one kind.
        agreement: of "screen": estimates against exact effects on the edges drawn at random.
    """

    graph: Graph
    query_ids: tuple[str, ...]
    values: Float[np.ndarray, "contrast edge"]
    base: Float[np.ndarray, "contrast"]
    donor: Float[np.ndarray, "contrast"]
    way: Way
    patched: Bool[np.ndarray, "edge"] | None = None
    agreement: Agreement | None = None

    @cached_property
    def queries(self) -> Float[np.ndarray, "query edge"]:
        """The effects by query: the mean over a query's contrasts."""
        return means_by_query(self.values, self.query_ids)

    @cached_property
    def estimate(self) -> Float[np.ndarray, "edge"]:
        """The mean effect over queries."""
        return self.queries.mean(0, dtype=np.float64)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line for each edge, the largest |effect| first.

        `edge`; `estimate`, the mean effect over queries, with its 95 % interval `low`, `high` (bootstrap-t); `p` alone
        and `p_corrected` for all edges together (sign flips of queries, max-T); `queries`; with "screen", `method`:
        "exact" or "eap-ig".
        """
        frame = summary(self.queries)
        frame.insert(0, "edge", [str(edge) for edge in self.graph.edges])
        if self.patched is not None:
            frame["method"] = np.where(self.patched, "exact", "eap-ig")
        return largest_first(frame)

    def within(self, graph: Graph) -> EdgeScores:
        """The scores of a part of the edges of a graph as scores of all, the others NaN."""
        values = np.full((len(self.values), len(graph)), np.nan, dtype=np.float32)
        values[:, graph.columns(self.graph.edges)] = self.values
        return replace(self, graph=graph, values=values)

    def __len__(self) -> int:
        """How many edges there are."""
        return len(self.graph)

    def circuit(self, size: int) -> Circuit:
        """The edges with the largest mean effects, whatever their sign.

        Raises:
            MechirError: for a size below 1, or above the number of edges measured where not all were.
        """
        refuse_other_than_whole(1, size=size)
        measured = int(np.isfinite(self.estimate).sum())
        if measured < min(size, len(self)):
            raise MechirError(
                f"size={size} asks for more edges than the {measured} that were measured: write {measured} or less, or "
                "measure all."
            )
        order = np.argsort(-np.abs(np.nan_to_num(self.estimate)), kind="stable")
        return Circuit(self.graph.edges[column] for column in order[np.isfinite(self.estimate[order])][:size])


@dataclass(frozen=True, eq=False)
class EdgeRoles:
    """The effect of every edge on every contrast, by the roles of the two positions between which it carries something.

    `values` has the roles of the source and of the reader, in the order of `contrasts.ROLES`, as its last axes; all
    else is as in `EdgeScores`.
    """

    graph: Graph
    query_ids: tuple[str, ...]
    values: Float[np.ndarray, "contrast edge source reader"]
    base: Float[np.ndarray, "contrast"]
    donor: Float[np.ndarray, "contrast"]
    way: Way

    @cached_property
    def plain(self) -> EdgeScores:
        """The effects of whole edges: the sums over roles."""
        return EdgeScores(self.graph, self.query_ids, self.values.sum((2, 3)), self.base, self.donor, self.way)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line for each edge and pair of roles that carries anything: as that of `EdgeScores`.

        `source` and `reader` are the roles. An edge into a head's v or k is read at the source, one into its q at the
        reader.
        """
        flat = means_by_query(self.values.reshape(len(self.values), -1), self.query_ids)
        some = np.flatnonzero(flat.any(0))
        n = len(ROLES)
        edges, source, reader = some // n**2, some // n % n, some % n
        roles = np.array(ROLES)
        names = np.array([str(edge) for edge in self.graph.edges])
        tested = summary(flat[:, some])
        frame = tested.assign(edge=names[edges], source=roles[source], reader=roles[reader])
        return largest_first(frame[["edge", "source", "reader", *tested.columns]])


def largest_first(frame: pd.DataFrame) -> pd.DataFrame:
    """The lines by |estimate|."""
    return frame.sort_values("estimate", key=abs, ascending=False, kind="stable", ignore_index=True)


def summary(values: Float[np.ndarray, "query column"]) -> pd.DataFrame:
    """The mean of each column with its interval and its tests; intervals of a thousand columns at a time."""
    parts = [inference.means(part) for part in np.array_split(values, max(1, values.shape[1] // 1000), axis=1)]
    tests = inference.sign_flips(values)
    return pd.DataFrame(
        {
            "estimate": values.mean(0, dtype=np.float64),
            "low": np.concatenate([part.low for part in parts]),
            "high": np.concatenate([part.high for part in parts]),
            "p": tests.p,
            "p_corrected": tests.p_corrected,
            "queries": np.concatenate([part.queries for part in parts]),
        }
    )


def both_ways(there: EdgeScores, back: EdgeScores) -> EdgeScores:
    """Half the difference of effects and of those with the two sides of every contrast swapped.

    Exchanging a contrast's sides turns the sign of this value and changes nothing else, so that sign flips are exact
    where it is a matter of chance which side is the base. Plain effects hold a part that does not turn with the sides,
    as of an edge whose loss and whose gain both lower the score: it is an effect, and it is rejected as such.

    Args:
        there: `edges(model, contrasts)`.
        back: the same of `[contrast.swapped() for contrast in contrasts]`.

    Raises:
        MechirError: for scores of other contrasts, of other edges or of another method; for a "screen", of which each
            has other edges patched.
    """
    ends = ((there.base, back.donor), (there.donor, back.base))
    if there.query_ids != back.query_ids or not all(np.allclose(*scores, rtol=1e-3, atol=1e-3) for scores in ends):
        raise MechirError("The contrasts are not the same with their sides swapped: give contrast.swapped() of each.")
    if there.graph != back.graph or there.way != back.way:
        raise MechirError(f"Both ways must be of the same edges and options, and these are {there.way} and {back.way}.")
    if there.patched is not None:
        raise MechirError("A screen patches other edges each way: score them with method='eap-ig' or 'exact'.")
    return replace(there, values=(there.values - back.values) / 2)


def agree(estimated: Float[np.ndarray, "edge"], measured: Float[np.ndarray, "edge"]) -> Agreement:
    """How well estimates agree with exact effects; NaN where either does not vary."""
    signs = int(((np.sign(estimated) != np.sign(measured)) & (np.abs(measured) > ROUNDING)).sum())
    if len(estimated) < FEWEST_EDGES or not np.ptp(estimated) or not np.ptp(measured):
        return Agreement(float("nan"), float("nan"), signs, len(estimated))
    r, rho = (float(test(estimated, measured).statistic) for test in (stats.pearsonr, stats.spearmanr))
    return Agreement(r, rho, signs, len(estimated))
