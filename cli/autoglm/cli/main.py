"""The `autoglm` command. One module per command; each imports what is heavy when it runs, not before."""

from importlib.metadata import version
from typing import Annotated

import typer

from autoglm.cli import bench, bundle, chat, doctor, evaluate, keys, serve, train

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"autoglm {version('autoglm-mesh')}")
        raise typer.Exit


@app.callback()
def autoglm(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve AutoGLM-Phone, an assistant that sees screens and hears speech, and work with it."""


app.command()(serve.serve)
app.command()(chat.chat)
app.command()(doctor.doctor)
app.add_typer(evaluate.app, name="eval")
app.add_typer(bench.app, name="bench")
app.add_typer(bundle.app, name="bundle")
app.add_typer(keys.app, name="keys")
app.add_typer(train.app, name="train")

if __name__ == "__main__":
    app()
