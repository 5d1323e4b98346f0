"""Options that `autoglm serve` and `autoglm doctor` share, so that one looks at what the other will use."""

from typing import Annotated

import typer

Modalities = Annotated[
    str,
    typer.Option(
        envvar="AUTOGLM_MODALITIES",
        help="What to serve: text, vision, speech, joined by commas; text is always there.",
        show_default="all that the bundle holds",
    ),
]
Host = Annotated[str, typer.Option(envvar="AUTOGLM_HOST", help="Address to listen on.")]
HttpPort = Annotated[int, typer.Option(envvar="AUTOGLM_HTTP_PORT", help="Port of the OpenAI API.")]
GrpcPort = Annotated[int, typer.Option(envvar="AUTOGLM_GRPC_PORT", help="Port of the gRPC API.")]
