"""Processes of this machine as an `Executor`: each computes one task at a time, and one that dies loses its task alone.

Every process is a pool of its own of the standard library, for one that dies breaks its whole pool.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Any

from mechir.errors import MechirError

PRELOADED = ["mechir.work"]
"""What is imported once, before processes are forked from it."""
LOST = (BrokenProcessPool,)
"""What the future of a task raises whose process died."""


class Processes(Executor):
    """So many processes with so many threads each; `submit` waits where all of them are busy."""

    def __init__(self, n: int, threads: int) -> None:
        self._threads = threads
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        _start_server(self._context)
        # The one that was busy last has read its model: a short chain of tasks takes one process alone.
        self._idle: queue.LifoQueue[ProcessPoolExecutor] = queue.LifoQueue()
        self._pools: list[ProcessPoolExecutor] = []  # broken ones too, whose threads end before this process does
        self._open = True
        self._lock = threading.Lock()
        for _ in range(n):
            self._start()

    def _start(self) -> None:
        pool = ProcessPoolExecutor(1, self._context, _begin, (self._threads,))
        self._pools.append(pool)
        self._idle.put(pool)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Gives a task to the next process that is free."""
        pool = self._idle.get()
        try:
            future = pool.submit(fn, *args, **kwargs)
        except BrokenProcessPool:  # it died while it was idle
            self._replace()
            return self.submit(fn, *args, **kwargs)
        future.add_done_callback(lambda done: self._received(pool, done))
        return future

    def _received(self, pool: ProcessPoolExecutor, future: Future[Any]) -> None:
        if not future.cancelled() and isinstance(future.exception(), LOST):
            self._replace()
        else:
            self._idle.put(pool)

    def _replace(self) -> None:
        with self._lock:
            if self._open:
                self._start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends all processes; with `cancel_futures` tasks in work are dropped at once."""
        with self._lock:
            self._open = False
        for pool in self._pools if cancel_futures else ():
            for process in list((pool._processes or {}).values()):
                process.terminate()
        for pool in self._pools:
            pool.shutdown(wait=wait, cancel_futures=True)


def _start_server(context: Any) -> None:
    """Starts the process that others are forked from and waits until it has imported; what ends this one comes after.

    Raises:
        MechirError: where no process can start, as from a script that starts the run wherever it is read.
    """
    with _held(signal.SIG_IGN, signal.SIGINT):  # inherited: Ctrl-C of a terminal goes to all processes
        forkserver.ensure_running()
    signals: list[int] = []
    with _held(lambda number, _: signals.append(number), signal.SIGINT, signal.SIGTERM):
        first = context.Process(target=_begin, args=(1,))
        first.start()
        first.join()
    for number in signals:
        signal.raise_signal(number)
    if first.exitcode:
        raise MechirError(
            f"A new process ends at its start (exit code {first.exitcode}): in a script, call run under "
            "`if __name__ == '__main__':`, for every process reads the script."
        )


@contextlib.contextmanager
def _held(handler: Any, *numbers: int) -> Iterator[None]:
    """Another answer to signals for a while; only the main thread can give one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, answer in before.items():
            signal.signal(number, signal.SIG_DFL if answer is None else answer)  # None: not set by Python


def _begin(threads: int) -> None:
    """Prepares a new process: its threads, no answer to Ctrl-C, which its parent has, and an end with its parent."""
    import torch
    from tqdm import tqdm

    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own is shared between processes, and is left behind by one that is ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
