"""Engines beside this process: each opens `Workers`, whose tasks go through a `concurrent.futures.Executor`.

`Local` starts processes on this machine; `Slurm` has Slurm start workers, as many as there is work for; `Allocation`
is this process's part of an `srun`; `Dask` is somebody's cluster. The last three are Dask over TLS, which only this
module imports (the extra `mechir-encoders[dask]`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from mechir.certificates import CA, CERT, KEY, folder_of, tls_files
from mechir.errors import LostWorkers, MechirError, brief, refuse_other_than_whole
from mechir.place import Place, token_of
from mechir.processes import LOST, Processes
from mechir.slurm import LOOPBACK, Part, Request, between, refuse_unsubmittable, worker_arguments
from mechir.workers import Workers

EXTRA = {"distributed": "distributed", "dask_jobqueue": "dask-jobqueue", "cryptography": "cryptography"}
"""The packages of the extra `dask`, by the name of their modules."""
SCHEDULER = {
    "distributed.scheduler.worker-saturation": 1.0,  # a worker that dies takes no task with it that waits for it
    "distributed.scheduler.allowed-failures": 10,  # a unit counts the processes that it killed itself
    "distributed.comm.timeouts.connect": "30s",
    "distributed.deploy.lost-worker-timeout": "5s",
}
"""Dask's configuration of the schedulers that are started here."""
GONE = "The scheduler is gone: what was finished is stored, and the same command computes what is missing."
ANSWER = "15s"
"""How long a scheduler may take to answer."""


@dataclass(frozen=True)
class Local:
    """Processes of this machine: one model each, the threads divided among them.

    In a script, call `mi.run` under `if __name__ == "__main__":`, as for every process pool of Python.
    """

    workers: int
    device: str | None = None

    def __post_init__(self) -> None:
        refuse_other_than_whole(1, workers=self.workers)

    @property
    def threads(self) -> int:
        """Of each process: its part of those that this one has."""
        return max(1, torch.get_num_threads() // self.workers)

    @contextlib.contextmanager
    def open(self, registry: Path, say: Callable[[str], None]) -> Iterator[Workers]:
        """See `mechir.workers.Engine`."""
        _refuse_unreadable_script()
        advice = "look at the memory of this machine, or take fewer workers."
        with token_of(registry) as place:
            processes = Processes(self.workers, self.threads)
            try:
                yield Workers(processes, lambda: self.workers, place, LOST, advice)
            except BaseException:
                processes.shutdown(cancel_futures=True)
                raise
            processes.shutdown()


@dataclass(frozen=True)
class Dask:
    """Somebody's Dask cluster, by the address of its scheduler, `tls://host:8786`, or its scheduler file.

    `certificates`: a folder with `ca.pem`, `cert.pem` and `key.pem`; by default what Dask's configuration names.
    """

    address: str
    certificates: Path | None = None
    device: str | None = None

    @contextlib.contextmanager
    def open(self, registry: Path, say: Callable[[str], None]) -> Iterator[Workers]:
        """See `mechir.workers.Engine`; raises for an address without TLS, and a scheduler that refuses or is silent."""
        _refuse_missing("distributed", "cryptography")
        address = self.address if "://" in self.address else _address_in(Path(self.address))
        if not address.startswith("tls://"):
            raise MechirError(
                f"'{address}' has no TLS, and whoever reaches such a scheduler can run code there: give "
                "tls://HOST:PORT of one that was started with certificates."
            )
        with token_of(registry) as place, _client(address, _security(self.certificates)) as client:
            yield _workers(client, place, lambda: _number_of_workers(client))


@dataclass(frozen=True)
class Slurm:
    """Workers that Slurm starts, each a job of its own, as many as there is work for.

    Attributes:
        keys: what a job asks for: "partition=gpu gres=gpu:1 time=04:00:00 mem=32G cpus=8" (`mechir.slurm`).
        workers: how many, as one number or as the fewest and the most, "0-16".
        listen: the address or the network interface of this machine that workers reach it by; by default the address
            of its way out. The scheduler listens there and nowhere else.
        certificates: see `Dask`; by default some are made for the run, beside the registry.
        device: where workers compute; None for a GPU where there is one.
    """

    keys: str
    workers: str = "0-16"
    listen: str = ""
    certificates: Path | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        Request.parse(self.keys)
        between(self.workers)

    @contextlib.contextmanager
    def open(self, registry: Path, say: Callable[[str], None]) -> Iterator[Workers]:
        """See `mechir.workers.Engine`; raises where there is no sbatch, or it refuses such a job, in its own words."""
        _refuse_missing("distributed", "dask_jobqueue", "cryptography")
        request, (least, most) = Request.parse(self.keys), between(self.workers)
        refuse_unsubmittable(request)
        with (
            token_of(registry) as place,
            _keys(registry, self.certificates) as keys,
            _own_scheduler(),
            _slurm_cluster(request, keys, self.listen, registry) as cluster,
        ):
            say(_dashboard(cluster.dashboard_link))
            cluster.adapt(minimum=least, maximum=most, interval="2s", wait_count=5)
            with _client(cluster, cluster.security) as client:
                yield _workers(client, place, lambda: most)


@dataclass(frozen=True)
class Allocation:
    """The tasks of one `srun`: the first is client and scheduler, the others are workers (`join`).

    Attributes: as of `Slurm`; `listen` is by default the name of the first task's node.
    """

    listen: str = ""
    certificates: Path | None = None
    device: str | None = None

    def join(self, registry: Path) -> None:
        """Becomes a worker, and does not return, in every task but the first; raises outside of an allocation."""
        _refuse_missing("distributed", "cryptography")
        Part.of_environment().become_worker(registry)

    @contextlib.contextmanager
    def open(self, registry: Path, say: Callable[[str], None]) -> Iterator[Workers]:
        """See `mechir.workers.Engine`."""
        from distributed import LocalCluster

        part = Part.of_environment()
        options: dict[str, Any] = {"n_workers": 0, "protocol": "tls://", "dashboard_address": LOOPBACK}
        with token_of(registry) as place, _keys(registry, self.certificates) as keys, _own_scheduler():
            security = _security(keys)
            with LocalCluster(**options, host=self.listen or part.node, security=security) as cluster:
                say(_dashboard(cluster.dashboard_link))
                with part.announced(registry, cluster.scheduler_address, keys), _client(cluster, security) as client:
                    yield _workers(client, place, lambda: part.tasks - 1)
                    client.retire_workers()  # so that they end before their scheduler, without complaint


def _refuse_unreadable_script() -> None:
    """Raises for a script that a new process cannot read, as every one of them does."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None) if main.__spec__ is None else None
    if file is not None and not Path(file).is_file():
        raise MechirError(f"No other process can read the script '{file}': write it into a file, or leave engine out.")


def _refuse_missing(*modules: str) -> None:
    if missing := [EXTRA[name] for name in modules if importlib.util.find_spec(name) is None]:
        raise MechirError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'mechir-encoders[dask]'."
        )


def _address_in(file: Path) -> str:
    """The address in a scheduler file."""
    if not file.is_file():
        raise MechirError(f"'{file}' is no address and no scheduler file: give tls://HOST:PORT, or the file's path.")
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["address"])
    except (ValueError, KeyError, TypeError) as error:
        raise MechirError(f"'{file}' is no scheduler file of Dask: it names no address.") from error


def _security(folder: Path | None) -> Any:
    """Dask's security with the certificates of a folder, or those that its configuration names."""
    from distributed import Security

    if folder is not None:
        ca, cert, key = map(str, tls_files(folder).values())
        roles = {
            f"tls_{role}_{what}": file
            for role in ("client", "scheduler", "worker")
            for what, file in (("cert", cert), ("key", key))
        }
        return Security(tls_ca_file=ca, require_encryption=True, **roles)
    security: Any = Security(require_encryption=True)
    if not (security.tls_ca_file and security.tls_client_cert):
        raise MechirError(
            f"A scheduler with TLS asks for a certificate: give certificates=DIR with {CA}, {CERT} and {KEY}, or name "
            "them in Dask's configuration (distributed.comm.tls)."
        )
    return security


@contextlib.contextmanager
def _keys(registry: Path, certificates: Path | None) -> Iterator[Path]:
    """The user's certificates, or some that are made for this run alone."""
    if certificates is not None:
        tls_files(certificates)
        yield certificates
        return
    with folder_of(registry, new_certificates()) as folder:
        yield folder


def new_certificates() -> dict[str, str]:
    """New certificates by the name of their file, which nobody else has signed or trusts."""
    from distributed import Security

    made = Security.temporary()
    texts = {CA: made.tls_ca_file, CERT: made.tls_scheduler_cert, KEY: made.tls_scheduler_key}
    return {name: str(text) for name, text in texts.items()}


@contextlib.contextmanager
def _own_scheduler() -> Iterator[None]:
    """Dask's configuration where the scheduler is started here."""
    import dask

    with dask.config.set(SCHEDULER), _without_logs():
        yield


@contextlib.contextmanager
def _without_logs() -> Iterator[None]:
    """No lines and tracebacks of Dask's beside our sentences."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    loggers = [logger for name in names if not (logger := logging.getLogger(name)).disabled]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False


@contextlib.contextmanager
def _client(address: Any, security: Any) -> Iterator[Any]:
    """A client; raises where the scheduler does not answer, or refuses its certificate."""
    from distributed import Client

    with _without_logs():
        try:
            client = Client(address, security=security, timeout=ANSWER, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise MechirError(
                f"The scheduler at {address} does not answer, or refuses the certificate: look whether it runs, and "
                f"give certificates=DIR with those that it was started with ({brief(error)})."
            ) from error
        try:
            yield client
        finally:
            client.close(timeout=5)


def _number_of_workers(client: Any) -> int:
    """How many workers the scheduler has now; raises where it is gone."""
    try:
        return len(client.nthreads())
    except OSError as error:
        raise LostWorkers(GONE) from error


def _workers(client: Any, place: Place, capacity: Callable[[], int]) -> Workers:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    def refuse_gone() -> None:
        if client.status != "running":
            raise LostWorkers(GONE)

    lost = (KilledWorker, FutureCancelledError, CancelledError)
    advice = "look at the logs of the workers, at their memory and their walltime."
    return Workers(client.get_executor(pure=False), capacity, place, lost, advice, refuse_gone)


@contextlib.contextmanager
def _slurm_cluster(request: Request, keys: Path, listen: str, registry: Path) -> Iterator[Any]:
    """A scheduler in this process, which has Slurm start workers."""
    from dask_jobqueue.slurm import SLURMCluster
    from distributed.utils import get_ip

    interface = listen if listen in [name for _, name in socket.if_nameindex()] else None
    of_job: dict[str, Any] = {
        "cores": 1,  # threads of Dask: units of one worker are computed one after the other
        "processes": 1,
        "memory": "1GiB",
        "job_directives_skip": ["--cpus-per-task", "--mem", "-t ", "-n 1"],  # in the user's words below
        "job_extra_directives": ["--ntasks=1", "--requeue", *request.directives],
        "job_script_prologue": [f"export OMP_NUM_THREADS={request.cpus}"],
        "worker_extra_args": worker_arguments(request.seconds, by_name=interface is None),
        "death_timeout": 60,
        "nanny": False,  # a worker that dies ends its job, and another is asked for
        "log_directory": str(registry.resolve() / ".slurm-logs"),
        "job_name": "mechir",
        "interface": interface,
    }
    where = {"interface": interface} if interface else {"host": listen or get_ip()}
    options = {"dashboard_address": LOOPBACK, **where}
    with SLURMCluster(**of_job, protocol="tls://", security=_security(keys), scheduler_options=options) as cluster:
        yield cluster


def _dashboard(link: str) -> str:
    port = urlsplit(link).port
    return f"Dask's dashboard: {link} (from your machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()})"
