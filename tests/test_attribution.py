"""Attribution patching: exact where the score is linear, repaired by the QK fix where the softmax is saturated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import mechir as mi
from mechir import model_sites
from mechir.contrasts import Contrast, encode_contrasts
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods import attribution, patching
from tests.models import FAMILIES, Checkpoints
from tests.test_patching import CONTRASTS

KEY = "h1.2.k"


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_derivative_along_the_change(checkpoints: Checkpoints, family: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family), dtype="float64")
    sites = ["h1.2", "h0.3", "mlp1", "n1.7", "attn0", "resid1", "mlp0.post", "attn1.v", "h1.1.v", "h1.0.q", "h1.0.k"]
    rows = attribution.attribute(model, CONTRASTS, sites, qk_fix=False)
    assert set(rows["site"]) == set(sites)
    for name, group in rows.groupby("site", sort=False):
        assert np.allclose(group["effect"], finite_difference(model, str(name)), rtol=1e-4, atol=1e-6), name


def finite_difference(model: HookedEncoder, name: str, step: float = 1e-4) -> torch.Tensor:
    """(score(u + step (donor - u)) - score(u - step (donor - u))) / (2 step), one pair at a time."""
    site, found = mi.parse_site(name), []
    for contrast in CONTRASTS:
        _, cache = model.run_with_cache(contrast.donor, names_filter=site.hook)

        def score(sign: float, contrast: Contrast = contrast, to: torch.Tensor = cache[site.hook]) -> torch.Tensor:
            def move(x: torch.Tensor, hook: object) -> torch.Tensor:
                out = x.clone()
                part = (slice(None), slice(None), site[1]) if isinstance(site, mi.Head | mi.Neuron) else ...
                out[part] = x[part] + sign * step * (to[part] - x[part])
                return out

            with torch.no_grad():
                return model.run_with_hooks(contrast.base, fwd_hooks=[(site.hook, move)])

        found.append((score(1) - score(-1)) / (2 * step))
    return torch.cat(found)


def test_where_the_score_is_linear_in_it_it_is_exact(tiny: HookedEncoder) -> None:
    near = [replace(c, donor=c.base) for c in CONTRASTS]
    assert (attribution.attribute(tiny, near)["effect"] == 0).all()
    last = ["n2.7", "h2.1", "mlp2"]
    exact = patching.patch(tiny, CONTRASTS, last).groupby("site")["effect"].mean()
    estimate = attribution.attribute(tiny, CONTRASTS, last).groupby("site")["effect"].mean()
    assert np.corrcoef(exact, estimate)[0, 1] > 0.9


def test_places_add_up_to_first_order(tiny: HookedEncoder) -> None:
    sites = ["h1.2", "mlp1", "h1.2.q", "h1.2.v", "resid1"]
    whole = attribution.attribute(tiny, CONTRASTS, sites).set_index(["site", "doc_id"])["effect"]
    for at in ("role", "segment", "position"):
        rows = attribution.attribute(tiny, CONTRASTS, sites, at=at)
        parts = rows.groupby(["site", "doc_id"])["effect"].sum()
        assert np.allclose(parts.loc[whole.index], whole, atol=1e-4)


def test_the_qk_fix_reads_the_softmax_exactly(checkpoints: Checkpoints) -> None:
    """What the fix claims of z, computed with hooks: gradient times the true change of z."""
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"), dtype="float64")
    for site in ("h1.2.q", "h1.2.k"):
        rows = attribution.attribute(model, CONTRASTS, site)
        for contrast, row in zip(CONTRASTS, rows.itertuples(), strict=True):
            batch = next(encode_contrasts(model, [contrast]).batches(model))
            _, _, gradient = attribution.gradients(model, batch, ["blocks.1.attn.hook_z"])
            donor = mi.record(model, [contrast.donor], site)
            _, base = model.run_with_cache(contrast.base, names_filter="blocks.1.attn.hook_z")
            with model.hooks(mi.Patch(donor, site).hooks(batch.base)):
                _, new = model.run_with_cache(contrast.base, names_filter="blocks.1.attn.hook_z", reset_hooks_end=False)
            change = (new["blocks.1.attn.hook_z"] - base["blocks.1.attn.hook_z"])[:, :, 2]
            assert row.effect == pytest.approx(
                float((gradient["blocks.1.attn.hook_z"][:, :, 2] * change).sum()), abs=1e-9
            )


def test_one_key_s_closed_form_is_the_softmax_with_that_key(checkpoints: Checkpoints) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"), dtype="float64")
    single = attribution.attribute(model, CONTRASTS, KEY, at="position").set_index(["at", "doc_id"])["effect"]
    for segment in ("cls", "sep1", "sep2"):  # one position each: recomputed there, closed form above
        rows = attribution.attribute(model, CONTRASTS, KEY, at=[segment])
        for number, row in enumerate(rows.itertuples()):
            at = encode_contrasts(model, [CONTRASTS[number]]).base.segments[0] == mi.Segment.parse(segment).value
            assert row.effect == pytest.approx(single[str(int(at.argmax())), row.doc_id], abs=1e-9)


def planted(a: float, n: int = 16) -> tuple[HookedEncoder, list[Contrast]]:
    model = mi.planted.bm25(a=a)
    return model, [Contrast(*pair) for pair in mi.planted.pairs(model, n=n)]


def mean(rows: pd.DataFrame, site: str) -> float:
    return float(rows[rows["site"] == site]["effect"].mean())


def test_at_the_donor_s_point_a_saturated_key_vanishes_and_the_fix_brings_it_back() -> None:
    model, contrasts = planted(20.0)
    contrasts = [contrast.swapped() for contrast in contrasts]
    exact = mean(patching.patch(model, contrasts, KEY), KEY)
    sites = [KEY, *(str(head) for head in model_sites.all_heads(model, "k") if str(head) != KEY)]
    plain = attribution.attribute(model, contrasts, sites, qk_fix=False)
    others = plain[plain["site"] != KEY]["effect"].abs().max()
    assert abs(mean(plain, KEY)) < others < 1e-3 < 0.1 < exact  # lost among what does nothing
    fixed = attribution.attribute(model, contrasts, sites)
    assert 0.3 * exact < mean(fixed, KEY) < 1.1 * exact
    assert mean(fixed, KEY) > 100 * fixed[fixed["site"] != KEY]["effect"].abs().max()


def test_at_the_base_a_key_is_overestimated_and_the_fix_is_right() -> None:
    model, contrasts = planted(20.0)
    exact = mean(patching.patch(model, contrasts, KEY), KEY)
    assert mean(attribution.attribute(model, contrasts, KEY, qk_fix=False), KEY) < 3 * exact < 0
    assert mean(attribution.attribute(model, contrasts, KEY), KEY) == pytest.approx(exact, rel=0.05)


def test_the_screen_keeps_the_planted_sites_and_says_how_well_it_did() -> None:
    model, contrasts = planted(8.0)
    found = attribution.screen_then_verify(model, contrasts, top=0.15, check=0.2)
    top = found.sites[found.sites["chosen"] == "top"]
    assert set(top["site"]) == {"h1.2", "mlp1", "h3.1"}
    assert found.pearson > 0.99 and found.n == len(top) + 4
    assert (found.sites["chosen"] == "random").sum() == 4
    assert found.sites["exact"].isna().sum() == len(found.sites) - found.n
    exact = patching.patch(model, contrasts, "h3.1")
    verified = found.rows[found.rows["site"] == "h3.1"]
    assert np.allclose(verified["effect"], exact["effect"], atol=1e-6)


def test_sites_without_attribution_are_refused(tiny: HookedEncoder) -> None:
    with pytest.raises(MechirError, match=r"'h1.2.pattern' has no attribution of its own: write its q, k, v or z"):
        attribution.attribute(tiny, CONTRASTS, "h1.2.pattern")
    with pytest.raises(MechirError, match=r"top=0.0 is no fraction: write e.g. top=0.1"):
        attribution.screen_then_verify(tiny, CONTRASTS, top=0.0)
    with pytest.raises(MechirError, match=r"check=2.0 is no fraction"):
        attribution.screen_then_verify(tiny, CONTRASTS, check=2.0)


def test_contrasts_of_one_batch_keep_their_effects(tiny: HookedEncoder) -> None:
    sites, one = ["h1.2", "h1.0", "mlp1", "h1.0.k"], CONTRASTS[0]
    other = Contrast(*(replace(pair, doc_id="other") for pair in (one.donor, one.base)))
    together = attribution.attribute(tiny, [other, one], sites)
    assert list(together["doc_id"]) == ["other", one.doc_id] * len(sites)
    for contrast in (one, other):
        alone = attribution.attribute(tiny, [contrast], sites).set_index("site")
        among = together[together["doc_id"] == contrast.doc_id].set_index("site")
        for name in ("base", "donor", "effect"):
            assert np.allclose(among[name], alone.loc[among.index, name], atol=1e-5)


def test_sites_drawn_to_check_the_screen_are_not_among_its_choice(tiny: HookedEncoder) -> None:
    found = attribution.screen_then_verify(tiny, CONTRASTS[:1], top=0.3, check=1.0).sites
    assert found["chosen"].value_counts().to_dict() == {"top": 5, "random": 10}  # of 12 heads and 3 MLPs
    assert (found["chosen"][:5] == "top").all() and found["exact"].notna().all()
