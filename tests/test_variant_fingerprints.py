"""Fingerprints of the variants of one checkpoint's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import mechir as mi
from tests.models import Checkpoints
from tests.test_input_matrix import PAIRS, VARIANTS


def test_variants_are_told_apart(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """What changes scores changes the fingerprint; what is no property of the weights changes neither."""
    found: dict[str, tuple[str, tuple[float, ...]]] = {}
    for name, (change, refusal, label, _) in VARIANTS.items():
        if refusal:
            continue
        folder = Path(shutil.copytree(checkpoints.path("bert"), tmp_path / name.replace(" ", "-")))
        change(folder)
        model = mi.load(folder, relevant_label=label)
        found[name] = (model.fingerprint, tuple(model.score(PAIRS).tolist()))
    by_print: dict[str, set[tuple[float, ...]]] = {}
    for fingerprint, scores in found.values():
        by_print.setdefault(fingerprint, set()).add(tuple(round(score, 3) for score in scores))
    assert all(len(scores) == 1 for scores in by_print.values())
    for name in ("return_dict", "chunks", "flash attention", "half precision", "a pickle beside", "head of a language model",
                 "shards", "saved truncation and padding", "a saved cross-encoder", "position ids"):  # fmt: skip
        assert found[name][0] == found["intact"][0], name
