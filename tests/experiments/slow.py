"""An experiment that takes its time, for tests of interruptions."""

import time

import mechir as mi
from mechir.views import charts


def measure(model, pairs, *, pause: float = 0.0, fail_at: str = ""):
    """Scores; fails at one query when asked to."""
    if any(pair.query_id == fail_at for pair in pairs):
        raise KeyboardInterrupt
    time.sleep(pause)
    return mi.sweep(model, pairs, {"original": (), "cut": mi.Mask("doc<-query")})


def summarise(rows, judged):
    """Means."""
    return rows.groupby("name", as_index=False)["score"].mean()


def chart(summary):
    """One cell per condition."""
    return charts.heatmap(summary.assign(x="x"), "x", "name", "score", title="slow")
