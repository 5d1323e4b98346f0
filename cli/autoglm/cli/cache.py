"""`autoglm cache`: shows and clears the embeddings that gateways share in Redis."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from autoglm.cli.options import AsJson, needing, print_json
from autoglm.common.modalities import BY_KIND, MediaKind

if TYPE_CHECKING:
    from autoglm.gateway.media.redis_entries import KindStats
    from autoglm.gateway.redis_address import RedisClient

app = typer.Typer(help="Show and clear the embeddings that gateways share in Redis.", no_args_is_help=True)

SECONDS = 5.0  # for one command
T = TypeVar("T")

Url = Annotated[
    str,
    typer.Option("--redis-url", envvar="AUTOGLM_REDIS_URL", help="Address of the Redis that the gateways use."),
]
Kinds = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODALITY]...", help="Modalities to clear: image, audio.", show_default="all"),
]


@app.command()
def stats(url: Url = "", as_json: AsJson = False) -> None:
    """Show entries, bytes, and how often gateways looked for one in Redis and found it, for each modality."""
    with _failing("stats"):
        from autoglm.gateway.media import redis_entries

        async def every(client: "RedisClient") -> "Mapping[MediaKind, KindStats]":
            return {kind: await redis_entries.stats(client, kind) for kind in BY_KIND}

        found = _ask(url, every)
    if as_json:
        print_json({kind: asdict(row) for kind, row in found.items()})
    else:
        _print(found)


@app.command()
def clear(
    modalities: Kinds = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before deleting.")] = False,
    url: Url = "",
) -> None:
    """Delete embeddings from Redis: media are encoded again. What gateways have in their own memory stays there."""
    with _failing("clear"):
        from autoglm.gateway.media import redis_entries

        kinds = _known(modalities or list(BY_KIND))
        if not yes:
            typer.confirm(f"Delete the {' and '.join(kinds)} embeddings in Redis?", abort=True, err=True)
        deleted = _ask(url, lambda client: redis_entries.clear(client, kinds))
    typer.echo(f"Deleted {deleted} embeddings; each gateway still has those in its own memory until it restarts")


def _known(names: list[str]) -> list[MediaKind]:
    unknown = [name for name in names if name not in BY_KIND]
    if unknown:
        raise ValueError(f"{unknown[0]} is not a modality with an encoder; choose from {', '.join(BY_KIND)}")
    return [kind for kind in BY_KIND if kind in names]


def _ask(url: str, work: "Callable[[RedisClient], Awaitable[T]]") -> T:
    """Return the result of `work`; raises ValueError with what to do when Redis cannot be asked."""
    from redis import AuthenticationError

    from autoglm.gateway.redis_address import FAILURES, RedisAddress, close, parse

    async def run(address: RedisAddress) -> T:
        client = address.client(SECONDS, max_connections=4)
        try:
            return await work(client)
        finally:
            await close(client)

    if not url:
        raise ValueError("which Redis? Set --redis-url or AUTOGLM_REDIS_URL")
    try:
        address = parse(url)
    except ValueError as error:
        raise ValueError(f"--redis-url or AUTOGLM_REDIS_URL: {error}") from None
    try:
        return asyncio.run(run(address))
    except AuthenticationError:
        raise ValueError(f"Redis at {address} refuses the user or password in --redis-url") from None
    except FAILURES as error:
        kind = type(error).__name__
        raise ValueError(f"Redis at {address} does not do it ({kind}): start it or correct --redis-url") from None


@contextmanager
def _failing(command: str) -> Iterator[None]:
    """End with one line and exit status 1 if the block raises ValueError or lacks a package."""
    try:
        with needing("gateway", f"cache {command}"):
            yield
    except ValueError as error:
        typer.echo(f"autoglm cache {command}: {error}", err=True)
        raise typer.Exit(1) from None


def _print(found: "Mapping[MediaKind, KindStats]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("Modality", *(("Entries", "MB", "Looked up", "Found", "Hit ratio")))
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, row in found.items():
        ratio = f"{row.hits / row.queries:.1%}" if row.queries else "–"
        table.add_row(kind, str(row.entries), f"{row.bytes / 1e6:.1f}", str(row.queries), str(row.hits), ratio)
    Console().print(table)
