"""An experiment that takes its time, for tests of interruptions."""

import time
from dataclasses import dataclass

import mechir as mi
from mechir.experiment import Experiment
from mechir.options import option
from mechir.views import charts


@dataclass(frozen=True)
class Slow(Experiment):
    """Scores, slowly."""

    pause: float = option(0.0, "seconds to wait before each unit")
    fail_at: str = option("", "the query at which it is interrupted")

    def measure(self, model, material):
        """Scores; fails at one query when asked to."""
        if any(pair.query_id == self.fail_at for pair in material):
            raise KeyboardInterrupt
        time.sleep(self.pause)
        return mi.sweep(model, material, {"original": (), "cut": mi.Mask("doc<-query")})

    def summarise(self, run):
        """Means."""
        return run.rows.groupby("name", as_index=False)["score"].mean()

    def chart(self, summary):
        """One cell per condition."""
        return charts.heatmap(summary.assign(x="x"), "x", "name", "score", title="slow")
