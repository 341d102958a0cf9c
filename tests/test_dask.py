"""A real scheduler with TLS: the same frames, nobody else gets in, and nothing listens beyond loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

import mechir as mi
from mechir import engine, work
from mechir.certificates import CA, CERT, KEY, folder_of, tls_files, write_keys
from mechir.engine import Dask
from mechir.errors import LostWorkers, MechirError
from tests.models import TOY, TOY_MODEL
from tests.test_workers import DEADLY, SLOW, same, wait_until

LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp."""


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "UNIT", 12)


def made_keys(folder: Path) -> Path:
    """A folder with new certificates."""
    folder.mkdir(mode=0o700)
    write_keys(folder, engine.new_certificates())
    return folder


class Cluster:
    """A scheduler and its workers as processes."""

    def __init__(self, folder: Path, protocol: str = "tls") -> None:
        self.folder, self.keys = folder, made_keys(folder / "keys")
        self.file = folder / "scheduler.json"
        files = zip(("ca-file", "cert", "key"), tls_files(self.keys).values(), strict=True)
        self.tls = [part for name, file in files for part in (f"--tls-{name}", str(file))] * (protocol == "tls")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            "scheduler", "--protocol", protocol, "--port", "0", "--dashboard-address", "127.0.0.1:0",
            "--scheduler-file", str(self.file),
        )  # fmt: skip
        wait_until(self.file.is_file)

    def _start(self, what: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--host", "127.0.0.1", *arguments, *self.tls]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        """One more worker, without a nanny that would start it again."""
        return self._start(
            "worker", "--scheduler-file", str(self.file), "--nthreads", "1", "--no-nanny", "--memory-limit", "0",
            "--dashboard-address", "127.0.0.1:0", "--death-timeout", "10", "--local-directory", str(self.folder),
        )  # fmt: skip

    @property
    def engine(self) -> Dask:
        return Dask(str(self.file), self.keys)

    @property
    def address(self) -> str:
        return engine._address_in(self.file)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    try:
        yield started
    finally:
        started.close()


def listening(pids: set[int]) -> set[str]:
    """The addresses that these processes listen on, as hexadecimal numbers."""
    inodes = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(file.readlink()))
            except OSError:
                continue
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1].split(":")[0] for line in lines if line[3] == LISTENING and f"socket:[{line[9]}]" in inodes}


def test_the_rows_are_those_of_one_process_and_nothing_listens_beyond_loopback(
    cluster: Cluster, tmp_path: Path
) -> None:
    for _ in range(2):
        cluster.worker()
    model, said = mi.load(TOY_MODEL), list[str]()
    here = mi.run(SLOW, model, TOY, registry=tmp_path / "here")
    there = mi.run(SLOW, model, TOY, registry=tmp_path / "there", engine=cluster.engine, say=said.append)
    same(here, there)
    assert listening({process.pid for process in cluster.processes}) == {"0100007F"}
    for _ in range(3):
        cluster.worker()
    with pytest.raises(LostWorkers, match=r"^unit \d+ of run \w+ \(deadly\) killed three workers each and is not"):
        mi.run(DEADLY, model, TOY, registry=tmp_path / "there", engine=cluster.engine, at="q3")


def test_nobody_without_the_certificate_gets_in(cluster: Cluster, tmp_path: Path) -> None:
    others = made_keys(tmp_path / "others")
    with pytest.raises(OSError, match=r"."):
        Client(cluster.address.replace("tls://", "tcp://"), timeout="2s", set_as_default=False)
    with pytest.raises(MechirError, match=r"^The scheduler at tls://127.0.0.1:\d+ does not answer, or refuses the"):
        mi.run(SLOW, mi.load(TOY_MODEL), TOY, registry=tmp_path / "there", engine=Dask(cluster.address, others))
    assert not (tmp_path / "there" / "runs").exists()


def test_a_scheduler_without_tls_is_refused(tmp_path: Path) -> None:
    started = Cluster(tmp_path, "tcp")
    try:
        with pytest.raises(
            MechirError, match=r"^'tcp://127.0.0.1:\d+' has no TLS, and whoever reaches such a scheduler"
        ):
            mi.run(SLOW, mi.load(TOY_MODEL), TOY, registry=tmp_path / "there", engine=started.engine)
    finally:
        started.close()


def test_the_end_of_the_scheduler_is_said_and_the_same_command_completes(cluster: Cluster, tmp_path: Path) -> None:
    import threading

    cluster.worker()
    model, options = mi.load(TOY_MODEL), {"pause": 0.5}

    def kill() -> None:
        wait_until(lambda: list((tmp_path / "there").glob("runs/*/part-*")))
        cluster.scheduler.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(LostWorkers, match=r"^The scheduler is gone: what was finished is stored, and the same command"):
        mi.run(SLOW, model, TOY, registry=tmp_path / "there", engine=cluster.engine, **options)
    thread.join()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("there/runs/*/part-*")}
    again = mi.run(SLOW, model, TOY, registry=tmp_path / "there", **options)
    assert before and all(file.stat().st_mtime_ns == when for file, when in before.items())
    same(again, mi.run(SLOW, model, TOY, registry=tmp_path / "here", **options))


def test_what_is_wrong_with_an_address_or_certificates_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    def refused(engine: Dask) -> str:
        with pytest.raises(MechirError) as error, engine.open(tmp_path / "registry", print):
            raise AssertionError("it opens")
        return str(error.value)

    assert refused(Dask("nowhere.json")).startswith("'nowhere.json' is no address and no scheduler file: give tls://")
    (tmp_path / "broken.json").write_text("{}")
    assert "is no scheduler file of Dask: it names no address" in refused(Dask(str(tmp_path / "broken.json")))
    assert refused(Dask("tls://127.0.0.1:1")).startswith("A scheduler with TLS asks for a certificate: give")
    keys = made_keys(tmp_path / "keys")
    (keys / KEY).chmod(0o644)
    assert "can be read by others: chmod 600 it, for whoever has it" in refused(Dask("tls://127.0.0.1:1", keys))
    (keys / CA).unlink()
    assert refused(Dask("tls://127.0.0.1:1", keys)) == (
        f"'{keys}' holds no ca.pem: give certificates=DIR with ca.pem, cert.pem, key.pem."
    )
    monkeypatch.setattr(engine, "EXTRA", engine.EXTRA | {"nothing_like_it": "cryptography"})
    with pytest.raises(MechirError, match=r"^cryptography is not installed: pip install 'mechir-encoders\[dask\]'\.$"):
        engine._refuse_missing("distributed", "nothing_like_it")


def test_certificates_of_a_run_are_its_owner_s_alone_and_go_with_it(tmp_path: Path) -> None:
    with folder_of(tmp_path / "registry", {KEY: "secret"}) as folder:
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
        assert (folder / KEY).stat().st_mode & 0o777 == 0o600
    assert not folder.exists()
    for name, days in (("old", 31), ("new", 1)):
        left = tmp_path / f".registry-keys-{name}"
        left.mkdir()
        os.utime(left, (time.time() - days * 24 * 3600,) * 2)
    start = time.monotonic()
    with engine._keys(tmp_path / "registry", None) as folder:
        assert set(tls_files(folder)) == {CA, CERT, KEY}
        folders = {path.name for path in tmp_path.iterdir()}
        assert folders == {folder.name, ".registry-keys-new"}, "what a client left that was killed goes after 30 days"
    assert time.monotonic() - start < 30
