"""The targets of attribution: the score of a pair, or the activation of one head or neuron on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.batches import Batch, shares
from mechir.errors import MechirError
from mechir.possible import refuse_impossible
from mechir.recorder import observe
from mechir.reranker import Reranker
from mechir.segments import Direction, Segment
from mechir.sites import Head, Neuron, parse_site

READOUTS = ("score", "p", "margin")


@dataclass(frozen=True)
class Target:
    """The number F whose change is attributed.

    Args:
        text: "score" (logit or log-odds), "p" = sigmoid(score), "margin" = sigmoid(score - `against`); or a head or
            neuron and where it is looked at: "h3.5@query<-doc", the mean over readers of the weight on all sources, 0
            to 1 (the whole pattern adds up to 1 whatever happens, so a head needs a direction); "n2.17@cls", the mean
            over positions of the activation, over all of them without "@". (The authors' code sums the block: the same
            for one pair, up to its number of readers.)
        against: for "margin", a constant for each pair, such as the score of a document that is not relevant.

    Raises:
        MechirError: for another word or site, "margin" without `against`.
    """

    text: str = "score"
    against: Sequence[float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.text not in READOUTS:
            self.place()  # refuses what cannot be read
        if (self.text == "margin") != (self.against is not None):
            raise MechirError("The target 'margin' takes against=, a score for each pair, and no other target does.")

    @property
    def site(self) -> Head | Neuron | None:
        """The head or neuron, if the target is one."""
        if self.text in READOUTS:
            return None
        site = parse_site(self.text.partition("@")[0])
        if not isinstance(site, Head | Neuron) or (isinstance(site, Head) and site.part != "z"):
            raise MechirError(f"Cannot attribute '{self.text}': write {', '.join(READOUTS)}, a head or a neuron.")
        return site

    @property
    def name(self) -> str:
        """The normal form: `h03.5@Q<-D` is `h3.5@query<-doc`."""
        if self.site is None:
            return self.text
        place = self.place()
        return str(self.site) if place == Segment.ALL else f"{self.site}@{place}"

    def place(self) -> Direction | Segment:
        """The direction of a head, the segment of a neuron."""
        where = self.text.partition("@")[2]
        if isinstance(self.site, Neuron):
            return Segment.parse(where) if where else Segment.ALL
        if not where:
            raise MechirError(f"The weights of '{self.text}' always add up to 1: write '{self.text}@query<-doc'.")
        direction = Direction.parse(where)
        if direction.source == Segment.ALL:
            raise MechirError(f"'{self.text}' is always 1: write a part of the sources, e.g. query<-doc.")
        return direction

    def cuts(self, model: Reranker) -> list[str]:
        """The hooks of the residual streams below: all of the change goes through each of them."""
        n = model.cfg.n_layers if self.site is None else self.site.layer + 1
        below = [f"blocks.{layer}.hook_resid_pre" for layer in range(n)]
        return below if self.site else [*below, f"blocks.{n - 1}.hook_resid_post"]

    def feeds(self, layer: int, kind: str) -> bool:
        """Tells if units of a layer ("neuron", "head" or "resid") lie below the target."""
        same_layer = kind == "resid" or (kind == "head" and isinstance(self.site, Neuron))
        return self.site is None or layer < self.site.layer + same_layer

    def value(self, model: Reranker, batch: Batch, index: np.ndarray) -> Float[Tensor, "pair"]:
        """The value of F on a batch; `index`: the places of its rows among all pairs."""
        if self.site is not None:
            return self._activation(self.site, model, batch)
        score = model(batch, head_row=True)
        if self.text == "score":
            return score
        if self.against is not None:
            score = score - torch.as_tensor(np.asarray(self.against, dtype=float)[index]).to(score)
        return score.sigmoid()

    def _activation(self, site: Head | Neuron, model: Reranker, batch: Batch) -> Float[Tensor, "pair"]:
        where = self.place()
        if isinstance(where, Direction):
            refuse_impossible(where, batch, model)
        hook = site._replace(part="pattern").hook if isinstance(site, Head) else site.hook
        x = observe(model, batch, [hook], stop_at_layer=site.layer + 1)[1][hook]
        if isinstance(where, Segment):
            return (shares(batch.at(where), x.dtype) * x[..., site[1]]).sum(1)
        readers, sources = shares(batch.at(where.reader), x.dtype), batch.at(where.source).to(x)
        return torch.einsum("brs,br,bs->b", x[:, site[1]], readers, sources)
