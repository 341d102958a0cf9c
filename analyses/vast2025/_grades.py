"""The options of experiments that contrast grades."""

from dataclasses import dataclass

from mechir.experiment import Experiment, Inputs
from mechir.methods.checks import contrasted, grades_of, grades_there, relevant_against_weak
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
        relevant_against_weak(self.relevant, self.weak)
        grades_there(inputs.material, **self.grades)
        queries = list(grades_of(inputs.material).values())
        contrasted(queries, self.grades, f"of {len(queries)}")
        return self
