"""`autoglm keys`: creates, lists and revokes API keys in the gateway's `api_keys_file`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from autoglm.cli.options import AsJson, needing, print_json

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

File = Annotated[
    Path,
    typer.Option(envvar="AUTOGLM_API_KEYS_FILE", help="File of tenants and hashes of their keys, YAML or JSON."),
]
DEFAULT_FILE = Path("keys.yaml")


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Tenant of the key. Keys of a tenant share cache and limits.")],
    file: File = DEFAULT_FILE,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="The tenant's rate limit; 0 is no limit.", show_default="unchanged")
    ] = None,
    max_concurrent: Annotated[
        int | None,
        typer.Option(min=0, help="The tenant's concurrent requests; 0 is no limit.", show_default="unchanged"),
    ] = None,
) -> None:
    """Create a key and print it once; the file keeps only its hash."""
    with _refusing("create"):
        from autoglm.gateway.admission.key_file import KeyFile, key_id, load, save

        content = load(file) if file.exists() else KeyFile()
        key = content.add_key(tenant)
        content.limit(tenant, requests_per_minute, max_concurrent)
        save(file, content)
    typer.echo(key)
    typer.echo(f"Created key {key_id(key)} of {tenant}; {file} has its hash. The key is not shown again", err=True)


@app.command("list")
def list_keys(file: File = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """List the ids of the keys, their tenants, and the limits of the tenants."""
    with _refusing("list"):
        from autoglm.gateway.admission.key_file import ID_DIGITS, load

        _must_exist(file)

        rows: list[dict[str, str | int | None]] = [
            {
                "id": digest[:ID_DIGITS],
                "tenant": tenant.name,
                "requests_per_minute": tenant.requests_per_minute,
                "max_concurrent_requests": tenant.max_concurrent_requests,
            }
            for tenant in load(file).tenants
            for digest in tenant.keys
        ]
    if as_json:
        print_json(rows)
    else:
        _print(rows)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, from `autoglm keys list`.")],
    file: File = DEFAULT_FILE,
) -> None:
    """Revoke a key; a gateway that uses the file refuses it within its `poll_interval`."""
    with _refusing("revoke"):
        from autoglm.gateway.admission.key_file import load, save

        _must_exist(file)
        content = load(file)
        tenant = content.remove_key(key)
        save(file, content)
    typer.echo(f"Revoked key {key} of {tenant}", err=True)


def _must_exist(file: Path) -> None:
    if not file.exists():
        raise ValueError(
            f"there is no {file}: create a key with `autoglm keys create`, or set --file or AUTOGLM_API_KEYS_FILE"
        )


@contextmanager
def _refusing(command: str) -> Iterator[None]:
    """End with one line and exit status 1 if the block raises ValueError or lacks a package."""
    try:
        with needing("gateway", f"keys {command}"):
            yield
    except ValueError as error:
        typer.echo(f"autoglm keys {command}: {error}", err=True)
        raise typer.Exit(1) from None


def _print(rows: list[dict[str, str | int | None]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("ID", "Tenant", "Requests per minute", "Concurrent requests")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console().print(table)
