"""The spectrum of W_QK: whether a head's weights match alike with alike beyond chance, and which text it prefers.

With A = W_QK, position i looks at j with (x_i A x_j + bias terms) / sqrt(d_head). The paper prints A transposed; its
Eq. 1 needs this order (Vast et al. 2025, arXiv:2507.14604, section 5).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from mechir.batches import shares
from mechir.errors import MechirError, refuse_below
from mechir.inference import holm
from mechir.inputs import as_pairs
from mechir.methods.groups import Groups, crossed
from mechir.model_sites import all_heads, heads_of
from mechir.recorder import observe
from mechir.reranker import Reranker, Turns, Weights, needs
from mechir.segments import Segment
from mechir.sites import Head
from mechir.subspaces import Subspace

DRAWS_PER_HEAD = 20
LOOK = "compare what its heads look at by matching.attention_by_pair"
"""The advice for a model whose attention scores are not x W_QK x."""
VECTORS = ("q_query", "q_doc", "k_query", "k_doc")


def _qk(model: Reranker, distance: int | None) -> Any:
    """W_QK of the model, or that of a distance; raises where one is given and there is none, or the other way round."""
    if model.structure.positions != "rotary":
        needs(model, "qk_spectra", Weights, positions="absolute", instead=LOOK)
        if distance is not None:
            raise MechirError(
                f"distance={distance} is of rotary positions, and '{model.cfg.model_name}' has one W_QK for all: leave "
                "it out."
            )
        return cast(Weights, model).W_QK
    if distance is None:
        raise MechirError(
            f"'{model.cfg.model_name}' turns queries and keys by their positions, and W_QK is another one for each "
            "distance: write distance=0, or another number of positions."
        )
    return cast(Turns, model).QK_at(distance)


def qk_spectra(
    model: Reranker, *, distance: int | None = None, draws: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """The alignment of every head's W_QK = U S V^T, from its d_head-rank factors.

    A head that looks for its own likeness has left and right singular vectors that point the same way. Directions drawn
    at random have cosines of variance 1 / d_model, so the trace is nearly normal with standard deviation
    ||A||_F / sqrt(d_model).

    `draws` random orthonormal frames, by default 20 per head, are the same for all heads in the ReLU variant. Where
    queries and keys are turned by their positions W_QK is another one for each `distance`, in positions from the reader
    back to the source: the result is of this one alone.

    Returns:
        One row per head: `site`; `trace` = sum_k sigma_k u_k.v_k, the paper's statistic, which is trace(A);
        `frobenius`; `z` = trace sqrt(d_model) / ||A||_F with `z_p` (two-sided, normal) and `z_p_corrected` over all
        heads; `relu` = sum_k sigma_k ReLU(cos(u_k, v_k)) with `relu_p` (one-sided, against the draws) and
        `relu_p_corrected`; `sigma`, the singular values, falling (a list). Positive: alike attracts alike. Heads whose
        queries and keys share a space smaller than the stream's have larger |z| by chance: the p-values are a screen,
        not a verdict.
    """
    refuse_below(1, draws=draws)
    u, sigma, v = _qk(model, distance).svd()
    cosine = (u * v).sum(-2).flatten(0, 1)
    sigma = sigma.flatten(0, 1)
    d_model, rank = u.shape[-2], sigma.shape[-1]
    trace, size = (sigma * cosine).sum(-1), sigma.norm(dim=-1)
    z = (trace * d_model**0.5 / size).cpu().numpy()
    relu = (sigma * cosine.clamp(min=0)).sum(-1)
    drawn = _random_cosines(d_model, rank, draws or DRAWS_PER_HEAD * len(sigma), seed).clamp(min=0).to(sigma)
    above = (drawn @ sigma.T >= relu).sum(0).cpu().numpy()
    p, p_relu = 2 * stats.norm.sf(np.abs(z)), (1 + above) / (1 + len(drawn))
    return pd.DataFrame(
        {
            "site": [str(head) for head in all_heads(model)],
            "trace": trace.cpu().numpy(),
            "frobenius": size.cpu().numpy(),
            "z": z,
            "z_p": p,
            "z_p_corrected": holm(p),
            "relu": relu.cpu().numpy(),
            "relu_p": p_relu,
            "relu_p_corrected": holm(p_relu),
            "sigma": list(sigma.cpu().numpy()),
        }
    )


def _random_cosines(d: int, rank: int, draws: int, seed: int) -> Float[Tensor, "draw rank"]:
    """The cosines u_k.v_k of two random orthonormal frames; with the axes as one frame, the diagonal of the other."""
    generator, cosines = torch.Generator().manual_seed(seed), []
    for n in np.diff(np.unique([*range(0, draws, 64), draws])).tolist():
        frames, upper = torch.linalg.qr(torch.randn(n, d, rank, generator=generator))
        signs = upper.diagonal(dim1=-2, dim2=-1).sign()
        cosines.append(frames[:, :rank].diagonal(dim1=-2, dim2=-1) * signs)
    return torch.cat(cosines)


@torch.no_grad()
def head_inputs(
    model: Reranker, pairs: Any, *, max_length: int | None = None, progress: bool | None = None
) -> pd.DataFrame:
    """The queries and keys of every head, as means over each query's pairs of one grade.

    Returns:
        One row per query, grade and head: `query_id`, `grade`, `n` pairs, `site`, and as lists of d_head numbers,
        biases included, `q_query`, `q_doc`, `k_query`, `k_doc`: the mean query (q) or key (k) over the query's or the
        document's tokens, a pair's mean first. As q and k are linear in the residual stream, these are the q and k of
        the mean inputs.
    """
    needs(model, "head_inputs", positions="absolute", instead=LOOK)
    pairs = as_pairs(pairs)
    groups, c = Groups.of(pairs), model.cfg
    sums = torch.zeros(len(VECTORS), len(groups.ids), c.n_layers, c.n_heads, c.d_head, dtype=torch.float64)
    hooks = [f"blocks.{layer}.attn.hook_{part}" for layer in range(c.n_layers) for part in "qk"]
    for index, batch in model.batches(pairs, max_length=max_length, progress=progress):
        weights = shares(batch.members((Segment.QUERY, Segment.DOC)), model.dtype)

        def mean(_: str, x: Tensor, weights: Tensor = weights) -> Float[Tensor, "side batch head d_head"]:
            return torch.einsum("bsp,bphe->sbhe", weights, x).double().cpu()

        for name, values in observe(model, batch, hooks, mean, stop_at_layer=c.n_layers)[1].items():
            first, layer = 0 if name.endswith("q") else 2, int(name.split(".")[1])
            sums[first : first + 2, :, layer].index_add_(1, groups.of_pair[index], values)
    frame = crossed(groups.ids, site=[str(head) for head in all_heads(model)])
    means = sums.flatten(2, 3).numpy() / groups.ids["n"].to_numpy()[:, None, None]
    return frame.assign(**{name: list(x.reshape(-1, c.d_head)) for name, x in zip(VECTORS, means, strict=True)})


def preferences(model: Weights, inputs: pd.DataFrame, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The preference of the mean query and of the mean document for either text, from `head_inputs`.

    Queries count alike, and within a query its grades.

    Returns:
        One row per head: `site`; `queries`; `axis` = q A d - d A d, the vertical axis of the paper's Figure 2, without
        biases and not scaled; it compares two readers, whom the softmax never compares. `query_prefers_doc` =
        (q A d - q A q) / sqrt(d_head) and `doc_prefers_query` = (d A q - d A d) / sqrt(d_head), with biases: the same
        reader, two sources, in logits of attention. Each with `_low` and `_high`, the 95 % interval over queries
        (percentiles, whole queries resampled `draws` times). Positive: the other text is preferred.
    """
    needs(model, "preferences", Weights, positions="absolute", instead=LOOK)
    refuse_below(1, draws=draws)
    places, queries = inputs["query_id"].factorize()
    n = len(queries)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    weights = np.vstack([np.ones(n), drawn]) / n
    scale, rows = model.cfg.d_head**0.5, []
    for site, part in inputs.assign(place=places).groupby("site", sort=False):
        (head,) = heads_of(model, str(site))
        b_k = model.b_K[head.layer, head.head].double().cpu().numpy()
        of_grade = weights[:, part["place"]] / part.groupby("place")["place"].transform("size").to_numpy()
        q_query, q_doc, k_query, k_doc = (of_grade @ np.stack(part[name].to_list()) for name in VECTORS)
        numbers = {
            "axis": ((q_query - q_doc) * (k_doc - b_k)).sum(1),
            "query_prefers_doc": (q_query * (k_doc - k_query)).sum(1) / scale,
            "doc_prefers_query": (q_doc * (k_query - k_doc)).sum(1) / scale,
        }
        line: dict[str, Any] = {"site": site, "queries": n}
        for name, values in numbers.items():
            low, high = np.quantile(values[1:], [0.025, 0.975])
            line |= {name: values[0], f"{name}_low": low, f"{name}_high": high}
        rows.append(line)
    return pd.DataFrame(rows)


class Seen(NamedTuple):
    """The directions of the residual stream x that a head's queries q = x W_Q + b_Q see, decomposed once.

    `u`: the left singular vectors of W_QK; `order`: their places, the most aligned first (the largest sigma u.v). They
    lie in the span of W_Q's columns, so u^T x is pinv(W_Q) u applied to q - b_Q, and what it adds to q is W_Q^T u.
    """

    head: Head
    u: Float[Tensor, "d_model rank"]
    order: Int[Tensor, "rank"]
    w: Float[Tensor, "d_model d_head"]
    offset: Float[Tensor, "d_head"]
    model: str

    @classmethod
    def by(cls, model: Weights, head: Head | str) -> Seen:
        """Decomposes the W_QK of one head of the model."""
        needs(model, "spectra", Weights, positions="absolute", instead=LOOK)
        (site,) = heads_of(model, head)
        u, sigma, v = model.W_QK[site.layer, site.head].svd()
        w, offset = (part[site.layer, site.head].double() for part in (model.W_Q, model.b_Q))
        return cls(site, u, (sigma * (u * v).sum(0)).argsort(descending=True), w, offset, model.fingerprint)

    def aligned(self, k: int = 4) -> Subspace:
        """The k directions along which the head most looks for its own likeness.

        For `Project(Head(l, h, "q"), ...)`, which then takes u^T x out of what the head's queries see of the residual
        stream x, and no other head's.

        Raises:
            MechirError: for more directions than the head has.
        """
        self._refuse(k)
        return self._removing(self.u[:, self.order[:k]], f"the {k} most aligned directions")

    def random(self, k: int = 4, *, seed: int = 0) -> Subspace:
        """The control of `aligned`: k random orthonormal directions among those that the queries see."""
        self._refuse(k)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.u.shape[1], k, generator=generator, dtype=torch.float64)
        return self._removing(self.u @ torch.linalg.qr(drawn)[0].to(self.u), f"{k} random directions, seed {seed},")

    def _refuse(self, k: int) -> None:
        if not 1 <= k <= self.w.shape[1]:
            raise MechirError(f"k={k} is out of range: a head has 1-{self.w.shape[1]} directions.")

    def _removing(self, u: Float[Tensor, "d_model k"], recipe: str) -> Subspace:
        read, write = (torch.linalg.pinv(self.w) @ u).T, u.T @ self.w
        return Subspace(f"{recipe} of {self.head}", read.contiguous(), write.contiguous(), self.offset, self.model)


def aligned(model: Weights, head: Head | str, k: int = 4) -> Subspace:
    """The k most aligned directions of one head: see `Seen.aligned`."""
    needs(model, "aligned", Weights, positions="absolute", instead=LOOK)
    return Seen.by(model, head).aligned(k)
