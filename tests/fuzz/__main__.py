"""`python -m tests.fuzz URL GRPC`: send made-up and damaged requests to a mesh, and count what comes of them."""

import asyncio
import sys
import time
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .run import explored, in_processes, run, through_the_doors
from .tally import FAULTS, Tally

EXAMPLES = 20  # of schemathesis, for each operation


def main(
    url: Annotated[str, typer.Argument(help="The HTTP API of a mesh without keys, such as http://127.0.0.1:8000.")],
    address: Annotated[str, typer.Argument(metavar="GRPC", help="Its gRPC API, such as 127.0.0.1:50051.")],
    seed: Annotated[int, typer.Option(help="The same seed and number make the same case.")] = 1,
    minutes: Annotated[float, typer.Option(min=0, help="How long.")] = 10,
) -> None:
    """Send made-up and damaged requests to a mesh, and count what comes of them: any fault makes the status 1."""
    tally = Tally(seed)
    try:
        asyncio.run(_fuzz(url, address, tally, minutes * 60))
    except KeyboardInterrupt:
        print("stopped before the time was over", file=sys.stderr)
    print(tally.table(), end="")
    for kind, (seconds, number) in tally.slowest.items():
        print(f"slowest of {kind}: {number}, {seconds:.1f} s", file=sys.stderr)
    for fault in tally.faults:
        print(fault, file=sys.stderr)
    raise typer.Exit(1 if tally.total(*FAULTS) else 0)


async def _fuzz(url: str, address: str, tally: Tally, seconds: float) -> None:
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("left, {task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task, started = progress.add_task("schemathesis", total=seconds), time.monotonic()

        def goes_on(number: int) -> bool:
            took, sent = time.monotonic() - started, tally.sent
            described = f"{sent} cases, {sent / took:.1f}/s, {len(tally.faults)} faults"
            progress.update(task, completed=took, description=described)
            return took < seconds

        await asyncio.to_thread(explored, url, tally, EXAMPLES)
        async with grpc.aio.insecure_channel(address) as channel, in_processes(tally.seed) as services:
            await run({**through_the_doors(url, channel, tally.seed), **services}, tally, goes_on)


if __name__ == "__main__":
    typer.run(main)
