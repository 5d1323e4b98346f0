"""What several commands share: options, JSON output, and the message about a missing package."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

BUNDLE_OPTION = "--bundle or AUTOGLM_BUNDLE"
BundleFolder = Annotated[
    Path | None,
    typer.Option("--bundle", envvar="AUTOGLM_BUNDLE", help="Folder of the bundle.", show_default="autoglm-phone-nano"),
]
Modalities = Annotated[
    str,
    typer.Option(
        envvar="AUTOGLM_MODALITIES",
        help="Modalities to serve: text, vision, speech, separated by commas; text is always served.",
        show_default="all of the bundle",
    ),
]
Host = Annotated[str, typer.Option(envvar="AUTOGLM_HOST", help="Address to listen on.")]
HttpPort = Annotated[int, typer.Option(envvar="AUTOGLM_HTTP_PORT", min=1, max=65535, help="Port of the OpenAI API.")]
GrpcPort = Annotated[int, typer.Option(envvar="AUTOGLM_GRPC_PORT", min=1, max=65535, help="Port of the gRPC API.")]
ApiKey = Annotated[str, typer.Option(envvar="AUTOGLM_API_KEY", help="API key, if the server requires one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@contextmanager
def needing(extra: str, command: str) -> Iterator[None]:
    """End with one line and exit status 1 if the block lacks a package of the distribution's `extra`."""
    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(
            f"autoglm {command}: {missing_package(error)} is missing: pip install 'autoglm-mesh[{extra}]'", err=True
        )
        raise typer.Exit(1) from None


def print_json(value: Any) -> None:
    """Print `value` as JSON, in the form that all commands share."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def missing_package(error: ModuleNotFoundError) -> str:
    """Return the package that has the module which could not be imported."""
    return str(error.name).partition(".")[0]
