"""Vectors added to activations: as values, by hand, and a difference that makes one text of another."""

from __future__ import annotations

import pytest
import torch

import mechir as mi
from mechir import Add
from mechir.encoder import HookedEncoder
from mechir.subspaces import EMBED
from tests.models import PAIRS, Checkpoints
from tests.test_subspaces import drawn, kept


def test_what_is_added_is_a_value() -> None:
    one, same = Add("resid2", [1.0, 2.0], at="q"), Add(mi.Resid(2), torch.tensor([1.0, 2.0]), mi.Segment.QUERY, 1)
    assert one == same and hash(one) == hash(same)
    others = [
        Add("resid1", [1.0, 2.0], at="q"), Add("resid2", [1.0, 3.0], at="q"), Add("resid2", [1.0, 2.0]),
        Add("resid2", [1.0, 2.0], at="q", factor=2), Add("resid2", [1.0, 2.0], at=[1]), Add("resid2", [1, 2], at="q"),
    ]  # fmt: skip
    assert len({one, same, *others}) == 7 and Add("embed", [1.0], at=3) == Add("embed", [1.0], at=[3])
    assert repr(one) == f"Add('resid2', d=2, sha256='{one.sha256[:16]}', at='query', factor=1.0)"
    vector = torch.ones(2)
    kept_as_given = Add("resid0", vector)
    vector += 1
    assert kept_as_given == Add("resid0", torch.ones(2)) and kept_as_given.vector.tolist() == [1, 1]


@pytest.mark.parametrize("site", ["embed", "resid1", "resid2.mid", "mlp0", "attn2", "attn1.q", "h1.2", "h2.0.k"])
def test_a_vector_is_added_where_it_is_said_and_0_changes_nothing(tiny: HookedEncoder, site: str) -> None:
    size = 8 if site in ("attn1.q", "h1.2", "h2.0.k") else 32
    hook = EMBED if site == "embed" else mi.parse_site(site).hook
    head = {"h1.2": 2, "h2.0.k": 0}.get(site)
    base, batch = kept(tiny, [hook])[hook], tiny.batch(PAIRS)
    for none in (Add(site, torch.zeros(size)), Add(site, drawn(size), factor=0), Add(site, drawn(size), at=[])):
        assert torch.equal(kept(tiny, [hook], none)[hook], base)
        assert torch.allclose(tiny.score(PAIRS, do=none), tiny.score(PAIRS), rtol=0, atol=1e-5)
    for at, where in (("doc", batch.at(mi.Segment.DOC)), (None, torch.ones_like(batch.attention_mask))):
        wanted = base.clone()
        there = wanted if head is None else wanted[:, :, head]
        there[where] += 3 * drawn(size).float()
        after = kept(tiny, [hook], Add(site, drawn(size), at, 3))[hook]
        assert torch.allclose(after, wanted, atol=1e-5) and not torch.allclose(after, base, atol=0.1)


def test_the_difference_of_two_texts_turns_one_into_the_other(checkpoints: Checkpoints) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"), dtype="float64")
    base, donor = mi.Pair("dog", "the moon pulls the tide"), mi.Pair("dog", "the moon pulls the bread")
    read = [kept(model, ["blocks.0.hook_resid_pre"], pairs=[pair])["blocks.0.hook_resid_pre"] for pair in (base, donor)]
    difference = (read[1] - read[0])[0]
    changed = difference.abs().sum(-1).nonzero().flatten().tolist()
    do = [Add("resid0", difference[position], at=position) for position in changed]
    assert len(changed) == 1
    assert torch.allclose(model.score([base], do=do), model.score([donor]), rtol=0, atol=1e-12)
    assert not torch.allclose(model.score([base]), model.score([donor]), atol=1e-3)
    back = Add("resid0", -difference[changed[0]], at=changed, factor=-1)
    assert torch.allclose(model.score([base], do=back), model.score([donor]), rtol=0, atol=1e-12)
