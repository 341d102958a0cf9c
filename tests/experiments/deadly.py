"""An experiment that kills the process that computes it, for tests of workers."""

import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import mechir as mi
from mechir.errors import MechirError
from mechir.experiment import Experiment
from mechir.options import option
from mechir.views import charts


@dataclass(frozen=True)
class Deadly(Experiment):
    """Scores; at one query the process is killed, or fails in another way."""

    at: str = option("", "the query at which it happens")
    how: str = option("kill", "what happens", among=("kill", "once", "error", "mistake", "full"))
    mark: str = option("", "the file that says that it happened already, for once")

    def measure(self, model, material):
        """Scores; or not."""
        if any(pair.query_id == self.at for pair in material):
            self._happen()
        return mi.sweep(model, material, {"original": (), "cut": mi.Mask("doc<-query")})

    def _happen(self):
        if self.how == "once":
            try:
                Path(self.mark).touch(exist_ok=False)
            except FileExistsError:
                return
        if self.how == "error":
            raise ZeroDivisionError("the experiment is wrong")
        if self.how == "mistake":
            raise MechirError("this query cannot be measured")
        if self.how == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        os.kill(os.getpid(), signal.SIGKILL)

    def summarise(self, run):
        """Means."""
        return run.rows.groupby("name", as_index=False)["score"].mean()

    def chart(self, summary):
        """One cell per condition."""
        return charts.heatmap(summary.assign(x="x"), "x", "name", "score", title="deadly")
