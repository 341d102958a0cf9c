"""Inference over queries: which test belongs to which kind of quantity.

* a mean or a share over queries: `means`, `shares`, `mean_interval` (bootstrap-t, step-down max-T);
* a contrast of grades: `grade_contrasts` (grades permuted within queries, step-down max-T);
* tests that all must hold: `intersection_union`; a few planned hypotheses: `holm`;
* how small an effect so many queries can find: `detectable`, `enough`.

Queries are the sample: documents of one query are not independent. docs/inference.md has the formulas and what the
tests do where their assumptions fail.
"""

from mechir.inference.families import LEVEL, holm, intersection_union, step_down
from mechir.inference.permuted import Contrasts, grade_contrasts
from mechir.inference.power import detectable, enough
from mechir.inference.studentised import FEWEST, Estimates, mean_interval, means, shares

__all__ = [
    "FEWEST",
    "LEVEL",
    "Contrasts",
    "Estimates",
    "detectable",
    "enough",
    "grade_contrasts",
    "holm",
    "intersection_union",
    "mean_interval",
    "means",
    "shares",
    "step_down",
]
