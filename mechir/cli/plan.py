"""`mechir run --dry-run`: what a run would cost, and what it can find."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mechir.encoder.hooked_model import HookedModel
    from mechir.estimate import Plan
    from mechir.experiment import Experiment
    from mechir.workers import Engine


def print_plan(
    experiment: Experiment, model: HookedModel, source: Any, pool: Any, registry: Path, engine: Engine | None
) -> None:
    """Prints the cost of a run as a whole and step by step, the time of workers, and its power where that is known."""
    from mechir.engine import Local
    from mechir.estimate import plan, sentence
    from mechir.views import tables

    threads = engine.threads if isinstance(engine, Local) else None
    planned = plan(experiment, model, source, pool, registry, threads=threads)
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
    if said := time_of_workers(planned, engine, str(model.device)):
        click.echo(f"\n{said}")
    if error := sentence(planned):
        click.echo(f"\n{error}")
    if planned.power is not None:
        click.echo(f"\nWhat so many queries can find, four times in five:\n{tables.summary(planned.power)}")


def time_of_workers(planned: Plan, engine: Engine | None, device: str) -> str:
    """The time of an engine's workers; empty for one worker, and where only the cluster knows how many there are."""
    from mechir.engine import Local, Slurm
    from mechir.slurm import between

    if isinstance(engine, Slurm):
        n = between(engine.workers)[1]
        who = f"{n} workers like this process"
    elif isinstance(engine, Local) and device == "cpu":
        n = engine.workers
        who = f"{n} processes of {engine.threads} thread{'' if engine.threads == 1 else 's'} each"
    elif isinstance(engine, Local) and engine.workers > 1:
        return f"What {engine.workers} processes take that share {device} is not estimated."
    else:
        return ""
    return f"With {who}: {planned.minutes(n):,.1f} minutes." if n > 1 else ""
