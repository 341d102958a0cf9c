"""Inference over queries: the test for each kind of quantity.

* a mean or a share over queries: `means`, `shares`, `mean_interval`, `mean_row` (bootstrap-t, step-down max-T);
* a contrast of grades: `grade_contrasts` (grades permuted within queries, step-down max-T);
* tests that all must hold: `intersection_union`; a few planned hypotheses: `holm`;
* two groups of queries: `difference` (both drawn anew, bootstrap-t);
* the power of a number of queries: `detectable`, `enough`.

Queries are the sample: documents of one query are not independent. docs/inference.md has the formulas and what the
tests do where their assumptions fail.
"""

from mechir.inference.families import LEVEL as LEVEL
from mechir.inference.families import holm as holm
from mechir.inference.families import intersection_union as intersection_union
from mechir.inference.families import step_down as step_down
from mechir.inference.flipped import sign_flips as sign_flips
from mechir.inference.permuted import Contrasts as Contrasts
from mechir.inference.permuted import grade_contrasts as grade_contrasts
from mechir.inference.power import detectable as detectable
from mechir.inference.power import enough as enough
from mechir.inference.studentised import FEWEST as FEWEST
from mechir.inference.studentised import Estimates as Estimates
from mechir.inference.studentised import mean_interval as mean_interval
from mechir.inference.studentised import mean_row as mean_row
from mechir.inference.studentised import means as means
from mechir.inference.studentised import shares as shares
from mechir.inference.unpaired import Difference as Difference
from mechir.inference.unpaired import difference as difference
