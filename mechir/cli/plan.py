"""`mechir run --dry-run`: what a run would cost, and what it can find."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mechir.encoder.hooked_model import HookedModel
    from mechir.experiment import Experiment


def print_plan(
    experiment: Experiment, model: HookedModel, source: Any, pool: Any, registry: Path, workers: int | None
) -> None:
    """Prints the cost of a run as a whole and step by step, the time of workers, and its power where that is known."""
    from mechir.estimate import plan, sentence
    from mechir.views import tables

    planned = plan(experiment, model, source, pool, registry)
    steps = planned.steps
    click.echo(f"pairs      {steps['pairs'].iloc[-1]:>12,}")
    click.echo(f"forwards   {steps['forwards'].sum():>12,}")
    click.echo(f"minutes    {steps['minutes'].sum():>12,.1f}")
    click.echo(f"memory     {steps['memory_gb'].max():>9,.1f} GB")
    if len(steps) > 1:
        shown = steps.assign(
            forwards=[f"{n:,}" for n in steps["forwards"]],
            minutes=[f"{n:.1f}" for n in steps["minutes"]],
            memory=[f"{n:.1f} GB" for n in steps["memory_gb"]],
        )
        click.echo(f"\n{tables.summary(shown[['step', 'pairs', 'forwards', 'minutes', 'memory']])}")
    if workers is not None and workers > 1:
        click.echo(f"\nWith {workers} workers like this process: {planned.minutes(workers):,.1f} minutes.")
    if told := sentence(planned):
        click.echo(f"\n{told}")
    if planned.power is not None:
        click.echo(f"\nWhat so many queries can find, four times in five:\n{tables.summary(planned.power)}")
