"""`autoglm keys`: make, list and revoke API keys, in the file that the gateway's `api_keys_file` names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from autoglm.cli.options import AsJson, needing, print_json

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

File = Annotated[
    Path, typer.Option(envvar="AUTOGLM_API_KEYS_FILE", help="File of tenants and their keys' hashes, YAML or JSON.")
]
DEFAULT_FILE = Path("keys.yaml")


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Whose key it is; keys of a tenant share cache and limits.")],
    file: File = DEFAULT_FILE,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="The tenant's limit; 0 is none.", show_default="as it is")
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=0, help="The tenant's requests at once; 0 is no limit.", show_default="as it is")
    ] = None,
) -> None:
    """Make a key and print it, this once: the file gets its hash."""
    with _refusing("create"):
        from autoglm.gateway.admission.key_file import KeyFile, key_id, load, save

        content = load(file) if file.exists() else KeyFile()
        key = content.add_key(tenant)
        content.limit(tenant, requests_per_minute, max_concurrent)
        save(file, content)
    typer.echo(key)
    typer.echo(f"Key {key_id(key)} of {tenant}: its hash is in {file}, and it is shown this once", err=True)


@app.command("list")
def list_keys(file: File = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """List the keys' ids, whose they are, and the tenants' own limits."""
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
    key: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `autoglm keys list` shows it.")],
    file: File = DEFAULT_FILE,
) -> None:
    """Remove a key; a gateway that follows the file refuses it within its `poll_interval`."""
    with _refusing("revoke"):
        from autoglm.gateway.admission.key_file import load, save

        _must_exist(file)
        content = load(file)
        tenant = content.remove_key(key)
        save(file, content)
    typer.echo(f"Key {key} of {tenant} is revoked", err=True)


def _must_exist(file: Path) -> None:
    if not file.exists():
        raise ValueError(f"there is no {file}: make a key with `autoglm keys create`, or name the file with --file")


@contextmanager
def _refusing(command: str) -> Iterator[None]:
    """End with one line and exit status 1 when something inside is wrong."""
    try:
        with needing("gateway", f"keys {command}"):
            yield
    except ValueError as error:
        typer.echo(f"autoglm keys {command}: {error}", err=True)
        raise typer.Exit(1) from None


def _print(rows: list[dict[str, str | int | None]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("ID", "Tenant", "Requests a minute", "At once")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console().print(table)
