"""Fixtures. The only place that knows where the real collections and the trained model are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mechir.encoder import HookedEncoder
from mechir.pair import Pair
from tests import models

LONG = ("examples", "notebooks", "workers", "cli", "frames", "parity", "dask", "pathway")
"""The files that take longest: they come first, or one of two processes ends with them while the other waits."""

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of the files that take longest first."""
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `data/` and `models/` that MECHIR_SHARED names."""
    folder = os.environ.get("MECHIR_SHARED")
    if not folder:
        pytest.skip("MECHIR_SHARED is not set: the real collections and the trained model are not here")
    return Path(folder)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> models.Checkpoints:
    """Tiny random checkpoints of every family, made on demand and kept for the session."""
    return models.Checkpoints(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny(checkpoints: models.Checkpoints) -> HookedEncoder:
    """A tiny BERT with one label."""
    return HookedEncoder.from_pretrained(checkpoints.path("bert"))


@pytest.fixture(scope="session")
def trained(shared: Path) -> HookedEncoder:
    """The real cross-encoder."""
    return HookedEncoder.from_pretrained(shared / "models" / "ce-minilm-l6")


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    """Pairs of several lengths, for tiny models."""
    return models.PAIRS


@pytest.fixture(scope="session")
def real_pairs(shared: Path) -> list[Pair]:
    """Judged pairs of DL19, shuffled once."""
    from mechir.opening import collection

    found = collection(shared / "data" / "dl19").pairs()
    return [found[int(i)] for i in torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with something of everything that a report shows; only read."""
    from tests import reports

    return reports.everything(tmp_path_factory.mktemp("told") / "registry")
