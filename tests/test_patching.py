"""Activation patching: everything is the donor, nothing is the base, and planted circuits are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch

import mechir as mi
from mechir import model_sites
from mechir.contrasts import Contrast, encode_contrasts
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.hooks import Hook
from mechir.methods import patching
from mechir.sites import ATTENTION
from tests.models import FAMILIES, PAIRS, WORDS, Checkpoints


def swapped_words(n: int = 6) -> list[Contrast]:
    """Contrasts of several lengths that differ in one word of the document and, for some, one of the query."""
    found = []
    for number, pair in enumerate(PAIRS[:n]):
        document = pair.document.split()
        whole = [place for place, word in enumerate(document) if word in WORDS]
        document[whole[len(whole) // 2]] = "moon"
        query = pair.query.split()
        query[-1] = "tide" if number % 2 else query[-1]
        found.append(Contrast(pair, replace(pair, document=" ".join(document), query=" ".join(query))))
    return found


CONTRASTS = swapped_words()


def literal(model: HookedEncoder, contrasts: Sequence[Contrast], site: patching.Site) -> torch.Tensor:
    """One pair at a time, two full forwards with plain hooks."""
    index = site[1] if isinstance(site, mi.Head | mi.Neuron) else None
    scores = []
    for contrast in contrasts:
        _, cache = model.run_with_cache(contrast.donor, names_filter=site.hook)
        value = cache[site.hook]

        def write(x: torch.Tensor, hook: object, value: torch.Tensor = value) -> torch.Tensor:
            out = x.clone()
            if index is None:
                out[:] = value
            elif site.hook.endswith("pattern"):
                out[:, index] = value[:, index]
            else:
                out[:, :, index] = value[:, :, index]
            return out

        with torch.no_grad():
            scores.append(model.run_with_hooks(contrast.base, fwd_hooks=[(site.hook, write)]))
    return torch.cat(scores)


SITES = [
    *("h1.2", "h2.3", "n1.7", "mlp0", "mlp2", "mlp1.post", "attn1", "attn2", "attn1.z", "resid1", "resid2.mid"),
    *("resid0.post", "resid2.post", *(f"h1.2.{part}" for part in ATTENTION if part != "z"), "attn2.pattern", "h2.0.k"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_equals_plain_hooks(checkpoints: Checkpoints, family: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    rows = patching.patch(model, CONTRASTS, SITES)
    assert rows["site"].drop_duplicates().tolist() == SITES
    for name, group in rows.groupby("site", sort=False):
        assert np.allclose(group["patched"], literal(model, CONTRASTS, mi.parse_site(str(name))), rtol=1e-5, atol=1e-5)
    one = rows[rows["site"] == "h1.2"]
    assert np.allclose(one["base"], model.score([contrast.base for contrast in CONTRASTS]), atol=1e-5)
    assert np.allclose(one["donor"], model.score([contrast.donor for contrast in CONTRASTS]), atol=1e-5)
    assert np.allclose(one["effect"], one["patched"] - one["base"])
    assert one["effect"].abs().max() > 1e-3


def test_all_of_the_first_stream_is_the_donor_and_none_of_it_is_the_base(tiny: HookedEncoder) -> None:
    rows = patching.patch(tiny, CONTRASTS, "resid0")
    assert np.allclose(rows["effect"], rows["donor"] - rows["base"], atol=3e-6)
    assert (rows["effect"].abs() > 1e-3).all()


def test_a_patch_of_nothing_changes_nothing(tiny: HookedEncoder) -> None:
    bases = [contrast.base for contrast in CONTRASTS]
    for site in SITES:
        own = tiny.score(bases, mi.Patch(mi.record(tiny, bases, site), site))
        assert torch.equal(own, tiny.score(bases, Seen(mi.parse_site(site).hook)))  # the same plan, bit for bit
    rows = patching.patch(tiny, CONTRASTS, [f"h{layer}.1" for layer in range(3)], at="position")
    last = rows[(rows["site"] == "h2.1") & (rows["at"] != "0")]  # the head reads CLS alone
    assert np.allclose(last["effect"], 0, atol=3e-6)
    assert rows[rows["site"] == "h1.1"]["effect"].abs().max() > 1e-3


@dataclass(frozen=True)
class Seen:
    """An intervention that looks and leaves alone."""

    name: str

    def hooks(self, batch: mi.Batch) -> list[Hook]:
        return [(self.name, lambda x, hook: x)]


def test_the_places_of_a_partition_are_each_position_once(tiny: HookedEncoder) -> None:
    for at in ("role", "segment", "position"):
        rows = patching.patch(tiny, CONTRASTS, "resid0", at=at)
        assert not rows.duplicated(["at", "doc_id"]).any()
    width = tiny.encode([contrast.base for contrast in CONTRASTS]).lengths
    found = rows.groupby("doc_id").size()
    assert found.to_dict() == {c.doc_id: int(n) for c, n in zip(CONTRASTS, width, strict=True)}
    injected = patching.patch(tiny, CONTRASTS, "resid0", at="injected")
    assert np.allclose(injected["patched"], injected["donor"], atol=3e-6)  # only what differs at the start matters
    rest = patching.patch(tiny, CONTRASTS, "resid0", at=["doc other", "query other", "sep", "cls"])
    assert np.allclose(rest["effect"], 0, atol=3e-6)


@torch.no_grad()
def test_of_a_pattern_the_positions_are_readers(tiny: HookedEncoder) -> None:
    for site in ("h1.2.pattern", "attn1.pattern"):
        rows = patching.patch(tiny, CONTRASTS, site, at="query").set_index("doc_id")
        for contrast in CONTRASTS:
            name = mi.parse_site(site).hook
            donor = tiny.run_with_cache(contrast.donor, names_filter=name)[1][name]
            readers = tiny.batch(contrast.base).at(mi.Segment.QUERY)[0]
            heads = slice(2, 3) if site.startswith("h") else slice(None)

            def write(
                x: torch.Tensor, hook: object, to: tuple = (readers, heads), new: torch.Tensor = donor
            ) -> torch.Tensor:
                out = x.clone()
                out[0, to[1], to[0]] = new[0, to[1], to[0]]
                return out

            expected = float(tiny.run_with_hooks(contrast.base, fwd_hooks=[(name, write)]))
            assert rows.loc[contrast.doc_id, "patched"] == pytest.approx(expected, abs=1e-5)
    assert rows["effect"].abs().max() > 1e-3


def test_rows_come_site_by_site_in_the_order_given(tiny: HookedEncoder) -> None:
    contrasts = CONTRASTS[::-1]
    rows = patching.patch(tiny, contrasts, ["h2.1", "mlp0", "h1.3"], at=["doc", "query"], max_rows=2)
    assert list(zip(rows["site"], rows["at"], rows["doc_id"], strict=True)) == [
        (site, at, contrast.doc_id)
        for site in ("h2.1", "mlp0", "h1.3")
        for at in ("doc", "query")
        for contrast in contrasts
    ]


def test_a_role_that_a_pair_lacks_has_no_row(tiny: HookedEncoder) -> None:
    rows = patching.patch(tiny, CONTRASTS, "h1.2", at="role")
    encoded = encode_contrasts(tiny, CONTRASTS)
    having = {
        (role, contrast.doc_id)
        for contrast, roles in zip(CONTRASTS, encoded.roles, strict=True)
        for role in {patching.ROLES[k] for k in roles}
    }
    assert set(zip(rows["at"], rows["doc_id"], strict=True)) == having


def test_patch_is_an_intervention_with_the_same_effect(tiny: HookedEncoder) -> None:
    bases, donors = [c.base for c in CONTRASTS], [c.donor for c in CONTRASTS]
    for site in ("h1.2", "h1.2.q", "h1.2.pattern", "mlp1", "resid2", "n1.7"):
        donor = mi.record(tiny, donors, site)
        for at, name in ((None, "all"), ("doc", "doc"), ("cls|query", "cls|query")):
            rows = patching.patch(tiny, CONTRASTS, site, at=[name] if at else "all")
            assert np.allclose(tiny.score(bases, mi.Patch(donor, site, at)), rows["patched"], rtol=1e-5, atol=1e-5)
    both = mi.sweep(tiny, bases, {"none": (), "one": mi.Patch(donor, site), "same": mi.Patch(donor, site)})
    assert np.allclose(both[both.name == "one"].score, both[both.name == "same"].score, atol=3e-6)
    at_cls = tiny.score(bases, mi.Patch(donor, site, 0))
    assert torch.allclose(at_cls, tiny.score(bases, mi.Patch(donor, site, "cls")), atol=1e-6)


def test_recorded_activations_are_values(tiny: HookedEncoder) -> None:
    donors = [c.donor for c in CONTRASTS]
    one, same, other = (mi.record(tiny, pairs, "h1.2") for pairs in (donors, donors, donors[:-1]))
    assert one == same and hash(one) == hash(same) and one != other
    assert one.sha256[:16] in repr(mi.Patch(one, "h1.2", "query"))
    assert mi.Patch(one, "h1.2") == mi.Patch(same, mi.Head(1, 2)) != mi.Patch(one, "h1.2", "doc")
    assert repr(mi.Patch(one, "h1.2", at="query")).startswith(
        "Patch(donor=Activations('blocks.1.attn.hook_z of 6 pairs"
    )


@pytest.mark.parametrize("c", [100.0, 3.0, 1.0])
@pytest.mark.parametrize("counterfactual", ["tf", "query"])
def test_node_patching_finds_the_planted_sites_and_no_trap(c: float, counterfactual: str) -> None:
    model = mi.planted.bm25(c=c)
    contrasts = [Contrast(*pair) for pair in mi.planted.pairs(model, n=16, counterfactual=counterfactual)]
    truth = {str(site) for site in mi.planted.truth(model, counterfactual).sites}
    for swap in (False, True):
        chosen = [contrast.swapped() for contrast in contrasts] if swap else contrasts
        effect = mean_effects(patching.patch(model, chosen, [*model_sites.all_heads(model), *model_sites.mlps(model)]))
        wanted = truth - ({"h1.2"} if swap and counterfactual == "query" else set())
        margin = effect[list(wanted)].min() / effect.drop(list(wanted)).max()
        assert margin > {100.0: 1000, 3.0: 5, 1.0: 5}[c]
        if wanted != truth:  # an AND: from the stop word's side the gate stays shut whatever the match says
            assert effect["h1.2"] < 0.05 * effect["h3.1"]


def mean_effects(rows: pd.DataFrame) -> pd.Series:
    return rows.assign(size=rows["effect"].abs()).groupby("site")["size"].mean()


@pytest.mark.parametrize(
    ("sites", "at", "message"),
    [
        ("h9.1", "all", r"Layer 9 is out of range in 'blocks.9.attn.hook_z': the model has layers 0-2"),
        ("h1.4", "all", r"Head 4 is out of range: layer 1 has heads 0-3"),
        ("n1.48", "all", r"Neuron 48 is out of range: layer 1 has neurons 0-47"),
        ("h1", "all", r"Cannot read 'h1' as a site"),
        ("h1.2.w", "all", r"Head has no part 'w': it has z, q, k, v, pattern, result"),
        ("mlp1.pre", "all", r"Mlp has no part 'pre': it has out, post, in"),
        ([], "all", r"There is nothing to patch: name a site such as 'h8.1'"),
        ("h1.2", "title", r"Unknown place 'title': write all, role, segment, position, a segment"),
    ],
)
def test_sites_that_cannot_be_patched_are_refused(tiny: HookedEncoder, sites: object, at: str, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        patching.patch(tiny, CONTRASTS, sites, at=at)  # type: ignore[arg-type]


def test_foreign_activations_are_refused(tiny: HookedEncoder, checkpoints: Checkpoints) -> None:
    bases, donors = [c.base for c in CONTRASTS], [c.donor for c in CONTRASTS]
    other = HookedEncoder.from_pretrained(checkpoints.path("bert", "relu"))
    for do in (mi.Patch(mi.record(other, donors, "h1.2"), "h1.2"), mi.Ablate("h1.2", mi.means(other, donors))):
        with pytest.raises(MechirError, match=r"These activations are of another model \(fingerprint .* this one is"):
            tiny.score(bases, do)
    few = mi.Patch(mi.record(tiny, donors[:2], "h1.2"), "h1.2")
    with pytest.raises(MechirError, match=r"are of other pairs: they hold none of pair q2/d2"):
        tiny.score([c.base for c in CONTRASTS[2:]], few)
    longer = [replace(pair, document=f"{pair.document} water") for pair in bases]
    with pytest.raises(MechirError, match=r"hold 22 positions of pair q0/d0, which has 23 here: align the texts"):
        tiny.score(longer[:1], mi.Patch(mi.record(tiny, donors, "h1.2"), "h1.2"))
    with pytest.raises(MechirError, match=r"hold no 'blocks.1.attn.hook_z'"):
        tiny.score(bases, mi.Patch(mi.record(tiny, donors, "h0.2"), "h1.2"))
    with pytest.raises(MechirError, match=r"Pair q0/d0 is there twice: a patch finds activations by the ids"):
        mi.record(tiny, [*donors, donors[0]], "h1.2")


def test_patches_that_make_no_sense_are_refused(tiny: HookedEncoder) -> None:
    donor = mi.record(tiny, [c.donor for c in CONTRASTS], "h1.2")
    with pytest.raises(MechirError, match=r"Cannot patch from 3: write donor=record\(model, donors, 'h1.2'\)"):
        mi.Patch(3, "h1.2")
    with pytest.raises(MechirError, match=r"Cannot patch 'score': write a site such as h8.1"):
        mi.Patch(donor, mi.Score())
    with pytest.raises(MechirError, match=r"Position 99 is out of range: the longest pair has 0-"):
        tiny.score([c.base for c in CONTRASTS], mi.Patch(donor, "h1.2", 99))
    with pytest.raises(MechirError, match=r"Cannot ablate 'h1.2.q'"):
        mi.Ablate("h1.2.q")
