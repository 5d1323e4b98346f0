"""What several commands share: options of the same name, meaning and form, JSON, and the word on a missing package."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

BundleFolder = Annotated[
    Path | None,
    typer.Option("--bundle", envvar="AUTOGLM_BUNDLE", help="Folder of the bundle.", show_default="autoglm-phone-nano"),
]
Modalities = Annotated[
    str,
    typer.Option(
        envvar="AUTOGLM_MODALITIES",
        help="What to serve: text, vision, speech, joined by commas; text is always there.",
        show_default="all that the bundle holds",
    ),
]
Host = Annotated[str, typer.Option(envvar="AUTOGLM_HOST", help="Address to listen on.")]
HttpPort = Annotated[int, typer.Option(envvar="AUTOGLM_HTTP_PORT", min=1, max=65535, help="Port of the OpenAI API.")]
GrpcPort = Annotated[int, typer.Option(envvar="AUTOGLM_GRPC_PORT", min=1, max=65535, help="Port of the gRPC API.")]
ApiKey = Annotated[str, typer.Option(envvar="AUTOGLM_API_KEY", help="Key, if the server asks for one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@contextmanager
def needing(extra: str, command: str) -> Iterator[None]:
    """End with one line and exit status 1 when a package of the distribution's `extra` is missing inside."""
    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(f"autoglm {command}: {error.name} is missing: pip install 'autoglm-mesh[{extra}]'", err=True)
        raise typer.Exit(1) from None


def print_json(value: Any) -> None:
    """Print `value` as every command's --json does."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
