"""Directions taken out of activations or scaled: against algebra done by hand, and against edited weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.hooks import edits
from mechir.methods.spectra import Seen, aligned
from mechir.pair import Pair
from mechir.subspaces import EMBED, Add, EditEmbedding, Project, Subspace
from mechir.sweeps import forwards
from tests.models import FAMILIES, PAIRS, Checkpoints


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def kept(model: HookedEncoder, names: Sequence[str], do: Any = (), pairs: Sequence[Pair] = PAIRS) -> dict[str, Tensor]:
    """The activations at `names`, after the edits of `do`."""
    batch, found = model.batch(pairs), {}

    def keep(x: Tensor, hook: Any) -> None:
        found[hook.name] = x

    with model.hooks([*edits(do, batch), *((name, keep) for name in names)]):
        model(batch, head_row=False)
    return found


def test_a_span_is_orthonormal_and_the_vectors_lie_in_it() -> None:
    vectors = drawn(3, 8)
    space = Subspace.span(vectors, "three")
    assert torch.allclose(space.read @ space.read.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.equal(space.read, space.write)
    x = drawn(5, 8, seed=1)
    assert torch.allclose(space.coordinates(vectors) @ space.write, vectors)
    assert torch.allclose(space.add(x, -space.coordinates(x)) @ vectors.T, torch.zeros(5, 3, dtype=torch.float64))
    assert torch.allclose(space.read[0], vectors[0] / vectors[0].norm())
    one = Subspace.span([0, -3, 4], "a single one, in whole numbers")
    assert torch.allclose(one.read, torch.tensor([[0, -0.6, 0.8]], dtype=torch.float64))


@pytest.mark.parametrize(
    "vectors",
    [torch.zeros(4), torch.ones(2, 4), drawn(5, 4), torch.stack([drawn(4), drawn(4, seed=1), drawn(4) - 1e-14])],
)
def test_dependent_vectors_are_refused(vectors: Tensor) -> None:
    n = len(torch.atleast_2d(vectors))
    with pytest.raises(MechirError) as caught:
        Subspace.span(vectors, "what they are")
    assert str(caught.value) == (
        f"The {n} vectors of 'what they are' span fewer directions: leave the dependent ones out."
    )


def test_vectors_that_are_not_finite_span_nothing() -> None:
    with pytest.raises(MechirError, match=r"The vectors of 'a mean' are not finite: check where they come from."):
        Subspace.span([1.0, float("nan")], "a mean")


def test_equal_directions_of_two_models_are_not_equal() -> None:
    one, other = (Subspace.span([3.0, 4.0], "x", model=model) for model in ("a", "b"))
    assert one != other and one.sha256 != other.sha256


def test_equality_hash_and_repr_are_of_the_content() -> None:
    one, same = (Subspace.span(drawn(2, 6), "two") for _ in range(2))
    assert one == same and hash(one) == hash(same) and one.sha256 == same.sha256
    others = [
        Subspace.span(drawn(2, 6), "two more"),
        Subspace.span(drawn(2, 6) + 1e-7, "two"),
        Subspace.span(drawn(2, 6), "two", offset=torch.ones(6)),
        Subspace("two", one.read, 2 * one.write, one.offset),
    ]
    assert len({one, same, *others}) == 5 and all(one != other for other in [*others, "two"])
    assert repr(one) == f"Subspace('two', k=2, sha256='{one.sha256[:16]}')"
    assert Project("h1.2.q", one) == Project(mi.Head(1, 2, "q"), same) != Project("h1.2.k", one)
    assert repr(Project("embed", one)) == f"Project(site='embed', subspace={one!r})"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_s_queries_no_longer_see_the_direction_and_nothing_else_changes(
    checkpoints: Checkpoints, family: str
) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family), dtype="float64")
    names = [f"blocks.1.{name}" for name in ("hook_q_input", "attn.hook_q", "attn.hook_k", "attn.hook_v")]
    base = kept(model, names)
    left = kept(model, names, Project("h1.2.q", aligned(model, "h1.2", k=3)))
    w = model.W_Q[1, 2]
    u, sigma, vt = torch.linalg.svd(w @ model.W_K[1, 2].T)
    most = (sigma * (u * vt.T).sum(0)).argsort(descending=True)[:3]
    x = base["blocks.1.hook_q_input"]
    wanted = (x - x @ u[:, most] @ u[:, most].T) @ w + model.b_Q[1, 2]
    assert torch.allclose(left["blocks.1.attn.hook_q"][:, :, 2], wanted, atol=1e-10)
    assert not torch.allclose(base["blocks.1.attn.hook_q"][:, :, 2], wanted, atol=0.1)
    for name in names:
        others = [0, 1, 3] if name.endswith("hook_q") else slice(None)
        assert torch.equal(left[name][:, :, others], base[name][:, :, others])


def test_random_directions_are_orthonormal_among_those_that_the_queries_see(tiny: HookedEncoder) -> None:
    w = tiny.W_Q[2, 1].double()
    spaces = [Seen.by(tiny, "h2.1").random(k=4, seed=seed) for seed in (0, 0, 1)]
    assert spaces[0] == spaces[1] != spaces[2] and spaces[0].model == tiny.fingerprint
    for space in spaces:
        u = w @ space.read.T
        assert torch.allclose(u.T @ u, torch.eye(4, dtype=torch.float64), atol=1e-9)
        assert torch.allclose(space.write, u.T @ w, atol=1e-9)
        assert torch.allclose(w @ torch.linalg.pinv(w) @ u, u, atol=1e-9)


@pytest.mark.parametrize(
    ("site", "hook"),
    [
        ("embed", EMBED),
        ("resid1", "blocks.1.hook_resid_pre"),
        ("mlp0", "blocks.0.hook_mlp_out"),
        ("attn2", "blocks.2.hook_attn_out"),
        (mi.Resid(0, "mid"), "blocks.0.hook_resid_mid"),
    ],
)
@pytest.mark.parametrize("family", ["bert", "electra"])
def test_what_lies_along_the_directions_becomes_the_offset(
    checkpoints: Checkpoints, family: str, site: object, hook: str
) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    base = kept(model, [hook])[hook]
    d = base.shape[-1]  # electra embeds words in fewer dimensions than its stream has
    assert d == (16 if (family, site) == ("electra", "embed") else 32)
    vectors, offset = drawn(2, d), drawn(d, seed=1)
    left = kept(model, [hook], Project(site, Subspace.span(vectors, "two", offset=offset)))[hook]
    inside = vectors.T @ torch.linalg.inv(vectors @ vectors.T) @ vectors
    wanted = base.double() - (base.double() - offset) @ inside
    assert torch.allclose(left.double(), wanted, atol=1e-5) and not torch.allclose(left, base, atol=0.1)


def hf_scores(model: HookedEncoder, hf: Any, pairs: Sequence[Pair]) -> np.ndarray:
    """Scores by Hugging Face's own forward."""
    batch = model.batch(pairs)
    types = {"token_type_ids": batch.token_type_ids} if model.cfg.family in ("bert", "electra") else {}
    with torch.no_grad():
        return hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), **types).logits[:, 0].numpy()


@pytest.mark.parametrize("family", ["bert", "electra", "distilbert", "roberta"])
@pytest.mark.parametrize(
    ("factor", "along", "chosen", "absolute"),
    [
        (0, True, True, False),
        (2.5, True, False, False),
        (-2.0, True, True, True),
        (1.0, True, False, True),
        (0.5, False, True, False),
        (0.0, False, False, False),
    ],
)
def test_an_edit_of_embeddings_is_an_edit_of_the_weights(
    checkpoints: Checkpoints, family: str, factor: float, along: bool, chosen: bool, absolute: bool
) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    vector, offset = drawn(model.W_E.shape[1], seed=2), 0.1 * drawn(model.W_E.shape[1], seed=3)
    pieces = model.tokenizer("goldfish grow oven", add_special_tokens=False).input_ids
    edited = copy.deepcopy(model.hf)
    weight, u = edited.get_input_embeddings().weight, vector / vector.norm()
    with torch.no_grad():
        for row in pieces if chosen else range(len(weight)):
            w = weight[row].double()
            a = (w - offset) @ u
            weight[row] = (w + (factor * (a.abs() if absolute else a) - a) * u if along else factor * w).float()
    direction = Subspace.span(vector, "one", offset=offset) if along else None
    edit = EditEmbedding(factor, direction, pieces if chosen else None, absolute)
    found = model.score(PAIRS, do=edit).numpy()
    np.testing.assert_allclose(found, hf_scores(model, edited, PAIRS), atol=1e-5)
    touched = [
        not chosen or bool({"goldfish", "grow", "oven"} & {*p.query.split(), *p.document.split()}) for p in PAIRS
    ]
    moved = np.abs(found - hf_scores(model, model.hf, PAIRS)) > 1e-5
    assert moved.tolist() == touched


def test_absolute_factors_point_up_or_down_the_direction_whatever_the_sign_was(tiny: HookedEncoder) -> None:
    direction = Subspace.span(drawn(32, seed=4), "one")
    before = direction.coordinates(kept(tiny, [EMBED])[EMBED])
    assert (before > 0).any() and (before < 0).any()
    for factor in (1, -3.0):
        for absolute, wanted in ((False, factor * before), (True, factor * before.abs())):
            x = kept(tiny, [EMBED], EditEmbedding(factor, direction, absolute=absolute))[EMBED]
            assert torch.allclose(direction.coordinates(x), wanted, atol=1e-5)


def test_a_shift_moves_along_the_direction_and_nowhere_else(tiny: HookedEncoder) -> None:
    direction = Subspace.span(drawn(32, seed=4), "one")
    before = kept(tiny, [EMBED])[EMBED]
    for factor, absolute in ((1, False), (2, False), (3, True)):
        after = kept(tiny, [EMBED], EditEmbedding(factor, direction, absolute=absolute, shift=0.7))[EMBED]
        along = direction.coordinates(before)
        wanted = factor * (along.abs() if absolute else along) + 0.7
        assert torch.allclose(after, direction.add(before, wanted - along), atol=1e-5)
    assert EditEmbedding(1, direction, shift=1.0) != EditEmbedding(1, direction)


def test_a_sweep_gives_what_each_gives_alone_and_equal_edits_are_computed_once(tiny: HookedEncoder) -> None:
    direction = Subspace.span(drawn(32), "one")
    do: dict[str, Any] = {
        "base": (),
        "head": Project("h1.2.q", aligned(tiny, "h1.2", 2)),
        "embed": Project("embed", direction),
        "resid": Project("resid2", direction),
        "z": Project("h2.1", Subspace.span(drawn(3, 8), "three")),
        "edit": EditEmbedding(2, direction, (7, 8, 17)),
        "whole": EditEmbedding(0.5, pieces=range(10)),
        "add": Add("resid2", drawn(32), at="cls|doc"),
        "add to a head": Add("h1.2.q", drawn(8), factor=5),
        "two": (EditEmbedding(-1, direction, absolute=True), mi.Ablate("h0.1")),
    }
    rows = mi.sweep(tiny, PAIRS, do)
    for name, what in do.items():
        alone = tiny.score(PAIRS, do=what).numpy()
        np.testing.assert_allclose(rows.loc[rows["name"] == name, "score"], alone, atol=1e-5)
        assert name == "base" or np.abs(alone - tiny.score(PAIRS).numpy()).max() > 1e-3
    for make in (lambda: Project("resid1", Subspace.span(drawn(32), "one")), lambda: Add("resid1", drawn(32), "doc")):
        twice = {name: make() for name in "ab"}
        assert forwards(tiny, twice) == forwards(tiny, {"a": twice["a"]})
    later = {name: Add("resid2", drawn(32), factor=factor) for name, factor in (("a", 1), ("b", -1))}
    assert forwards(tiny, later) == pytest.approx((1 + 1 + 2) / 3)  # layers 0 and 1 are shared
    assert EditEmbedding(2, direction, (8, 7, 7)) == EditEmbedding(2.0, Subspace.span(drawn(32), "one"), [7, 8])


def test_directions_of_another_model_are_refused(tiny: HookedEncoder, checkpoints: Checkpoints) -> None:
    other = HookedEncoder.from_pretrained(checkpoints.path("bert", labels=2))
    foreign = aligned(other, "h1.2", 2)
    embedded = Subspace.span(drawn(32), "one", model=other.fingerprint)
    for do in (Project("h1.2.q", foreign), Project("embed", embedded), EditEmbedding(0, embedded)):
        with pytest.raises(MechirError) as caught:
            tiny.score(PAIRS, do=do)
        assert str(caught.value) == (
            f"These activations are of another model (fingerprint {other.fingerprint[:12]}, this one is "
            f"{tiny.fingerprint[:12]}): record them in this one."
        )
        other.score(PAIRS[:1], do=do)
    tiny.score(PAIRS[:1], do=EditEmbedding(0))


WIDE, NARROW = Subspace.span(drawn(32), "wide"), Subspace.span(drawn(8), "narrow")


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (
            Project("h1.2.q", WIDE),
            f"{WIDE!r} has 32 dimensions and 'blocks.1.attn.hook_q' has 8: take directions of that activation.",
        ),
        (
            Project("embed", NARROW),
            f"{NARROW!r} has 8 dimensions and 'embed.hook_embed' has 32: take directions of that activation.",
        ),
        (
            Add("h1.2.q", torch.ones(32)),
            f"{Add('h1.2.q', torch.ones(32))!r} has 32 dimensions and 'blocks.1.attn.hook_q' has 8: take a vector of that "
            "activation.",
        ),
        (Add("h1.4.q", torch.ones(8)), "Head 4 is out of range: layer 1 has heads 0-3."),
        (Add("resid0", torch.ones(32), at=99), "Position 99 is out of range: the longest pair has 0-21."),
        (Project("h1.4.q", NARROW), "Head 4 is out of range: layer 1 has heads 0-3."),
        (
            Project("h3.0.q", NARROW),
            "Layer 3 is out of range in 'blocks.3.attn.hook_q': the model has layers 0-2.",
        ),
    ],
)
def test_sites_and_sizes_that_do_not_fit_the_model_are_refused(tiny: HookedEncoder, do: Project, message: str) -> None:
    for call in (lambda: tiny.score(PAIRS[:1], do=do), lambda: mi.sweep(tiny, PAIRS[:1], {"a": do})):
        with pytest.raises(MechirError) as caught:
            call()
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (
                lambda site=site: Project(site, WIDE),
                f"Cannot project '{site}': write a head's part (h8.1.q), resid3, mlp3, attn3 or embed.",
            )
            for site in ("h0.1.pattern", "h0.1.result", "attn0.pattern", "n0.3", 3)
        ),
        (
            lambda: Add("n0.3", [1.0]),
            "Cannot add to 'n0.3': write a head's part (h8.1.q), resid3, mlp3, attn3 or embed.",
        ),
        (
            lambda: Add("resid0", torch.ones(2, 3)),
            "What is added has the shape (2, 3): give a vector of numbers and a factor, such as 1.0.",
        ),
        (
            lambda: Add("resid0", [1.0, float("nan")]),
            "What is added has values that are not finite: give a vector of numbers and a factor, such as 1.0.",
        ),
        (
            lambda: Add("resid0", [1.0], factor=float("inf")),
            "What is added has values that are not finite: give a vector of numbers and a factor, such as 1.0.",
        ),
        (
            lambda: Project("embed", [1.0, 2.0]),
            "[1.0, 2.0] is no Subspace: write Subspace.span(vectors, 'what they are').",
        ),
        (
            lambda: EditEmbedding(0.5, [1.0, 2.0]),
            "[1.0, 2.0] is no Subspace: write Subspace.span(vector, 'what it is').",
        ),
        (
            lambda: EditEmbedding(0.5, absolute=True),
            "A whole embedding has no sign: leave absolute out, or give a direction.",
        ),
        (
            lambda: EditEmbedding(1, shift=0.5),
            "A whole embedding has no sign: leave shift out, or give a direction.",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(call: Any, message: str) -> None:
    with pytest.raises(MechirError) as caught:
        call()
    assert str(caught.value) == message


def test_the_edit_leaves_the_activation_it_was_given_alone(tiny: HookedEncoder) -> None:
    batch, x = tiny.batch(PAIRS[:2]), drawn(2, 5, 4, 8).float()
    before = x.clone()
    for do in (Project("h1.2.q", NARROW), Add("h1.2.q", drawn(8)), Add("attn1.q", drawn(8), at=(0, 2))):
        ((name, edit),) = do.hooks(batch)
        out = edit(x, hook=SimpleNamespace(name=name))
        assert torch.equal(x, before) and not torch.equal(out, x) and out.dtype == x.dtype
