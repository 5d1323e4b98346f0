"""`autoglm plan`: what a workload needs."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autoglm.cli.options import needing, print_json
from autoglm.cli.progress import telling


class CardName(StrEnum):
    """GPUs whose published figures are known."""

    RTX_4090 = "4090"
    L4 = "L4"
    A10 = "A10"
    H100 = "H100"


class Format(StrEnum):
    """How a plan is printed."""

    TABLE = "table"
    JSON = "json"


def plan(
    workload: Annotated[Path, typer.Argument(help="Workload file; docs/planning.md describes it.")],
    costs: Annotated[Path, typer.Option(help="What stages cost: a JSON file of `autoglm bench stages`.")],
    card: Annotated[
        CardName | None,
        typer.Option(help="Plan autoglm-phone-9b-gcma on this GPU, by its published figures."),
    ] = None,
    cores: Annotated[int, typer.Option(min=1, help="With --card: CPU cores of each GPU's host.")] = 16,
    price: Annotated[float | None, typer.Option(min=0, help="Price of a device (GPU, or machine) for an hour.")] = None,
    requests: Annotated[int, typer.Option(min=100, help="Requests to simulate for the final figures.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulation.")] = 0,
    format: Annotated[Format, typer.Option(help="What to print.")] = Format.TABLE,
) -> None:
    """Plan replicas, placement, cache and cost for a workload by simulation; exit status 1 if no plan meets its SLO."""
    with needing("plan", "plan"):
        from autoglm.bench.plan.cards import CARDS, card_costs
        from autoglm.bench.plan.costs import StageCosts
        from autoglm.bench.plan.plan import make_plan
        from autoglm.bench.plan.replications import replications
        from autoglm.bench.plan.report import as_text
        from autoglm.bench.plan.schema import PlanError
        from autoglm.bench.plan.sizing import Sizer
        from autoglm.bench.plan.workload import Workload
    try:
        asked, measured = Workload.load(workload), StageCosts.load(costs)
        used = measured if card is None else card_costs(CARDS[card], measured, cores, asked)
        with telling() as tell, replications() as simulator:
            made = make_plan(Sizer(asked, used, simulator, requests, seed, tell), price)
    except PlanError as error:
        print(f"autoglm plan: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("autoglm plan: stopped", file=sys.stderr)
        raise typer.Exit(130) from None
    if format is Format.JSON:
        print_json(made.as_dict())
    else:
        print(as_text(made), end="")
