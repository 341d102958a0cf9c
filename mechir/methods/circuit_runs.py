"""A run of the model with the edges of a circuit alone: every other edge carries what the donor's text makes it carry.

Every reader gets a stream of its own: from the senders that lead to it inside the circuit, what they write in this run;
from all others, what they write on the donor; LayerNorms are live. With all edges it is the run of the base, with none
that of the donor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mechir.batches import Batch
from mechir.circuits import PORTS, Circuit, Reader
from mechir.contrasts import Contrast, refuse_unaligned
from mechir.errors import MechirError
from mechir.hooks import Edit, EveryLayer, Hook, Hooked
from mechir.methods.edge_graph import Graph, Sender, reads_at, refuse_foreign_edges, writes_at
from mechir.methods.paths import Run
from mechir.pair import Pair
from mechir.reranker import Reranker, Weights, needs_edges
from mechir.sites import Head, Mlp, Score

Inside = frozenset[Sender]
"""The senders that lead to a reader inside the circuit, or those of them that have written by some moment."""


@dataclass(frozen=True, init=False, repr=False)
class Only:
    """Runs the model on the edges of a circuit: `model.score(pairs, do=Only(circuit, contrasts))`.

    Args:
        circuit: the edges that carry this run's activations.
        contrasts: where the other edges' activations come from: the donor of each pair that is scored, as `Contrast`s
            or (base, donor) pairs of equal length.

    Raises:
        MechirError: for two donors of one pair; when it runs, for a pair that is no base of the contrasts, and for
            edges that the model lacks.
    """

    circuit: Circuit
    contrasts: tuple[Contrast, ...]
    donors: Mapping[Pair, Pair] = field(compare=False)
    plans: dict[str, Plan] = field(compare=False)
    _complement = False

    def __init__(self, circuit: Any, contrasts: Any) -> None:
        object.__setattr__(self, "circuit", Circuit(circuit))
        object.__setattr__(self, "contrasts", tuple(as_contrasts(contrasts)))
        donors: dict[Pair, Pair] = {}
        for contrast in self.contrasts:
            if donors.setdefault(contrast.base, contrast.donor) != contrast.donor:
                raise MechirError(f"{_named(contrast)} has two donors: give the contrasts of one filler at a time.")
        object.__setattr__(self, "donors", donors)
        object.__setattr__(self, "plans", {})  # by the fingerprint of a model, made and checked once for all batches

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.circuit!r}, {len(self.contrasts)} contrasts)"

    def hooks(self, batch: Batch) -> list[Hook]:
        """The edits that record what components write and hand every reader its stream."""
        missing = [pair for pair in batch.pairs if pair not in self.donors]
        if missing:
            raise MechirError(f"{_named(missing[0])} is the base of none of the contrasts: score the bases of these.")
        begun: dict[str, CircuitRun] = {}
        return [(EveryLayer(name), Unbound(self, batch, part, begun)) for part, name in HOOKS.items()]

    def refuse_beside(self, others: Sequence[Hook]) -> None:
        """Refuses edits of what components write or read beside these: which of the two acts would be left to order."""
        for match, _ in others:
            names = [match] if isinstance(match, str) else filter(match, STREAMS)
            name = next((name for name in names if name.split(".", 2)[-1] in STREAM), None)
            if name:
                raise MechirError(
                    f"{type(self).__name__} hands every reader its stream, so an edit at '{name}' beside it would be "
                    "lost or not by their order: give masks and neurons beside it, or change the circuit."
                )

    def start(self, model: Hooked, batch: Batch) -> CircuitRun:
        """The run of a batch, with the donors' run made and nothing computed of its own."""
        needs_edges(model, type(self).__name__)
        inside = cast(Weights, model)
        if model.fingerprint not in self.plans:
            refuse_foreign_edges(inside, self.circuit)
            self.plans[model.fingerprint] = Plan.of(Graph.of(inside), self.circuit, self._complement)
        donors = donor_batch(inside, batch, [self.donors[pair] for pair in batch.pairs])
        return CircuitRun(inside, self.plans[model.fingerprint], Donor.of(inside, donors))


@dataclass(frozen=True, init=False, repr=False)
class Without(Only):
    """Runs the model without the edges of a circuit: these carry the donor's activations, all others this run's."""

    _complement = True


def _named(item: Pair | Contrast) -> str:
    return f"Pair {item.query_id}/{item.doc_id}"


def donor_batch(model: Reranker, batch: Batch, donors: Sequence[Pair]) -> Batch:
    """The donors of the pairs of a batch, word piece over word piece.

    Raises:
        MechirError: for a donor of another length or other segments than its base (the pair and position are named).
    """
    base, donor = (model.encode(pairs) for pairs in (batch.pairs, donors))
    for place, (pair, other) in enumerate(zip(batch.pairs, donors, strict=True)):
        refuse_unaligned(Contrast(pair, other), base, donor, model.tokenizer, place)
    cut = model.encode(donors, batch.input_ids.shape[1])  # as the bases are, which may be read in part
    return cut.batch(range(len(donors))).to(model.device)


def as_contrasts(given: Any) -> list[Contrast]:
    """Contrasts as they are, and (base, donor) pairs as contrasts.

    Raises:
        MechirError: for anything else.
    """
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(pair, Pair) for pair in given):
        given = Contrast(*given)
    if not isinstance(given, Contrast | Iterable):
        raise MechirError(f"{given!r:.60} are no contrasts: give Contrasts (mi.align), or (base, donor) pairs.")
    listed = [given] if isinstance(given, Contrast) else list(given)
    contrasts = []
    for item in listed:
        if isinstance(item, tuple) and len(item) == 2 and all(isinstance(pair, Pair) for pair in item):
            item = Contrast(*item)
        if not isinstance(item, Contrast):
            raise MechirError(f"{item!r} is no contrast: give Contrasts (mi.align), or (base, donor) pairs.")
        contrasts.append(item)
    return contrasts


@dataclass(frozen=True, eq=False)
class Donor:
    """The run over the donors, and the queries, keys and values of its heads, layer by layer."""

    run: Run
    ports: dict[str, list[Float[Tensor, "batch _ head d_head"]]]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Weights, batch: Batch) -> Donor:
        """The run over a batch."""
        run = Run.of(model, batch, None, [f"attn.hook_{port}" for port in PORTS])
        return cls(run, {port: run.also[f"attn.hook_{port}"] for port in PORTS})


@dataclass(frozen=True)
class Plan:
    """Which streams a circuit needs: for every reader what leads to it, and what is carried from moment to moment.

    `carried[m]` has, for every set of senders that some later reader wants, those of them that have written by moment m
    with those that had by m - 1.
    """

    inside: Mapping[Reader, Inside]
    carried: tuple[Mapping[Inside, Inside], ...]

    @classmethod
    def of(cls, graph: Graph, circuit: Circuit, complement: bool) -> Plan:
        """The plan of a circuit, or of the edges of the graph that it lacks."""
        leading: dict[Reader, set[Sender]] = {}
        for edge in circuit:
            leading.setdefault(edge.readers[0], set()).add(edge.source)  # type: ignore[arg-type]
        n, inside = graph.n_layers, {}
        for reader in graph.readers:
            senders = frozenset(leading.get(reader, ()))
            before = frozenset(graph.senders[: graph.before(reads_at(reader, n))])
            inside[reader] = before - senders if complement else senders
        carried = []
        for moment in range(2 * n + 1):
            wanted = [_by(senders, moment) for reader, senders in inside.items() if reads_at(reader, n) >= moment]
            carried.append({senders: _by(senders, moment - 1) for senders in wanted if senders})
        return cls(inside, tuple(carried))


def _by(senders: Inside, moment: int) -> Inside:
    """Those of the senders that have written by a moment."""
    return frozenset(sender for sender in senders if writes_at(sender) <= moment)


class CircuitRun:
    """One run of one batch on the edges of a circuit: the streams of its readers as far as the run has come."""

    def __init__(self, model: Weights, plan: Plan, donor: Donor) -> None:
        self.model, self.plan, self.donor = model, plan, donor
        self.streams: dict[Inside, Tensor] = {}
        self.changed: dict[Sender, Tensor] = {}

    def visit(self, layer: int, part: str, x: Tensor) -> Tensor | None:
        """What a component reads in the place of `x`; None where it is recorded alone."""
        run, last = self.donor.run, layer == self.model.cfg.n_layers - 1
        if part == "resid_pre" and layer == 0:
            self.streams = {senders: x for senders in self.plan.carried[0]}
        if part in PORTS:
            return _over(x, self._port(layer, part))
        if part == "z":
            self._heads_wrote(layer, x)
        if part == "mlp_in":
            return _over(x, self._stream(Mlp(layer, "in"), run.mid[layer]))
        if part == "mlp_out":
            self.changed = {Mlp(layer): x[:, : run.mlp[layer].shape[1]] - run.mlp[layer]}
            self._advance(2 * layer + 2, run.mid[layer], run.mlp[layer], self.model.parts.layers[layer].ln2)
        if part == "resid_post" and last:
            return _over(x, self._stream(Score(), run.resid[-1]))
        return None

    def _stream(self, reader: Reader, donor: Tensor) -> Tensor:
        senders = self.plan.inside[reader]
        return self.streams[senders] if senders else donor

    def _port(self, layer: int, port: str) -> Tensor:
        """The queries, keys or values of all heads of a layer, each from its own stream."""
        of, n = self.model.parts.layers[layer].port(port), self.model.cfg.n_heads
        groups: dict[Inside, list[int]] = {}
        for head in range(n):
            groups.setdefault(self.plan.inside[Head(layer, head, port)], []).append(head)
        out = self.donor.ports[port][layer].clone()
        weight, bias = of.weight.unflatten(0, (n, -1)), of.bias.unflatten(0, (n, -1))
        for senders, heads in groups.items():
            if senders:
                made = F.linear(
                    self.streams[senders][:, : out.shape[1]], weight[heads].flatten(0, 1), bias[heads].flatten()
                )
                out[:, :, heads] = made.unflatten(-1, (len(heads), -1))
        return out

    def _heads_wrote(self, layer: int, z: Tensor) -> None:
        run, of = self.donor.run, self.model.parts.layers[layer]
        weight = of.o.weight.unflatten(1, (self.model.cfg.n_heads, -1))
        change = z[:, : run.z[layer].shape[1]] - run.z[layer]
        sending = {sender for senders in self.plan.carried[2 * layer + 1] for sender in senders}
        self.changed = {
            sender: change[:, :, sender.head] @ weight[:, sender.head].T
            for sender in sending
            if isinstance(sender, Head) and sender.layer == layer
        }
        self._advance(2 * layer + 1, run.resid[layer], run.attn[layer], of.ln1)

    def _advance(self, moment: int, donor: Tensor, written: Tensor, norm: nn.LayerNorm) -> None:
        """Carries every stream through one sublayer: what its senders write in this run, the others on the donor."""
        rows, before, self.streams = written.shape[1], self.streams, {}
        for senders, earlier in self.plan.carried[moment].items():
            x = (before[earlier] if earlier else donor)[:, :rows] + written
            for sender in sorted(senders - earlier, key=tuple):  # a set has another order in every process
                x += self.changed[sender]
            self.streams[senders] = norm(x)


def _over(x: Tensor, rows: Tensor) -> Tensor:
    """The rows of a stream in the place of the first rows of `x`: in the last layer CLS is all that the score reads."""
    return rows if rows.shape[1] == x.shape[1] else torch.cat([rows, x[:, rows.shape[1] :]], 1)


HOOKS = {
    "resid_pre": "hook_resid_pre",
    **{port: f"attn.hook_{port}" for port in PORTS},
    "z": "attn.hook_z",
    "mlp_in": "hook_mlp_in",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
"""The hook points at which a circuit's run looks or writes, in the order of a layer."""
STREAM = {*HOOKS.values(), "hook_attn_out", "hook_resid_mid", "attn.hook_result"}
STREAM |= {f"hook_{port}_input" for port in PORTS}
STREAM |= {f"{norm}.hook_{part}" for norm in ("ln1", "ln2") for part in ("in", "scale", "normalized")}
STREAMS = [f"blocks.{layer}.{name}" for layer in range(100) for name in sorted(STREAM)]
"""The hook points of what components write and read, in models of up to 100 layers."""


@dataclass(frozen=True, eq=False)
class Step(Edit):
    """The edit of a circuit's run at one kind of hook point, in every layer."""

    run: CircuitRun
    part: str

    head_row = True

    def __call__(self, x: Tensor, hook: Any) -> Tensor | None:
        """What the component reads, from its own stream."""
        return self.run.visit(int(hook.name.split(".")[1]), self.part, x)


def run_hooks(run: CircuitRun) -> list[Hook]:
    """The edits of one run over one batch."""
    return [(EveryLayer(name), Step(run, part)) for part, name in HOOKS.items()]


@dataclass(frozen=True, eq=False)
class Unbound(Edit):
    """A step of an `Only` that has no model yet: its run begins in the first model that asks for one of its steps."""

    of: Only
    batch: Batch
    part: str
    begun: dict[str, CircuitRun]

    head_row = True

    def within(self, model: Hooked) -> Step:
        """The step in this model."""
        if model.fingerprint not in self.begun:
            self.begun[model.fingerprint] = self.of.start(model, self.batch)
        return Step(self.begun[model.fingerprint], self.part)

    def __call__(self, x: Tensor, hook: Any) -> Tensor | None:
        """Never called: a model asks for the step within it."""
        raise MechirError("Run a circuit with model.score(pairs, do=Only(...)), or within model.hooks(...).")
