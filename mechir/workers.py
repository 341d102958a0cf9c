"""The seam between a run and what computes it: an engine opens workers, which take tasks as futures.

`Here` is this process; `mechir.engine` has the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mechir.batches import without_bars
from mechir.place import Place, on_worker, task_of


@dataclass(frozen=True)
class Workers:
    """What computes tasks, while an engine is open.

    Attributes:
        executor: takes tasks; None for this process.
        capacity: how many tasks are handed out at a time.
        place: what every worker must see and be; None for this process.
        lost: what the future of a task raises whose worker died.
        advice: what to look at where workers are lost.
        refuse_gone: raises `LostWorkers` where nothing is left that could take a task.
    """

    executor: Executor | None
    capacity: Callable[[], int]
    place: Place | None = None
    lost: tuple[type[BaseException], ...] = ()
    advice: str = ""
    refuse_gone: Callable[[], None] = lambda: None

    @property
    def session(self) -> str:
        """The word by which the processes of this client know each other; empty for this process."""
        return "" if self.place is None else self.place.session

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Hands a task out; in this process it is done at once."""
        if self.executor is not None and self.place is not None:
            return self.executor.submit(on_worker, self.place, task_of(work, arguments))
        future: Future[Any] = Future()
        try:
            with without_bars():
                future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


@runtime_checkable
class Engine(Protocol):
    """Something that computes units: `mechir.engine`. `device`: where its workers compute; None for a GPU if any."""

    @property
    def device(self) -> str | None:
        """See the class."""

    def open(self, registry: Path, say: Callable[[str], None]) -> contextlib.AbstractContextManager[Workers]:
        """The workers, while the context lasts; raises in one sentence for what is not there."""


@dataclass(frozen=True)
class Here:
    """This process."""

    device: str | None = None

    @contextlib.contextmanager
    def open(self, registry: Path, say: Callable[[str], None]) -> Iterator[Workers]:
        """See `Engine`."""
        yield Workers(None, lambda: 1)
