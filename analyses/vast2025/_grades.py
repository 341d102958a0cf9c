"""The options of experiments that contrast grades."""

from dataclasses import dataclass

from mechir.errors import MechirError
from mechir.experiment import Experiment, Inputs
from mechir.methods.checks import contrasted, grades_of, grades_there
from mechir.options import option


@dataclass(frozen=True)
class OfGrades(Experiment):
    """An experiment on relevant documents, hard negatives and easy ones."""

    relevant: int = option(3, "the grade of relevant documents")
    hard: int = option(0, "the grade of hard negatives")
    weak: int = option(-1, "the grade of easy negatives, -1 for unjudged documents")

    @property
    def grades(self) -> dict[str, int]:
        """The grades that are contrasted."""
        return {"relevant": self.relevant, "hard": self.hard, "weak": self.weak}

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses grades that cannot be contrasted: two queries need pairs of each two grades."""
        if self.relevant == self.weak:
            both = f"relevant= and weak= are both {self.weak}"
            raise MechirError(f"{both}: write two grades, or there is nothing to contrast.")
        grades_there(inputs.material, **self.grades)
        queries = list(grades_of(inputs.material).values())
        contrasted(queries, self.grades, f"of {len(queries)}")
        return self
