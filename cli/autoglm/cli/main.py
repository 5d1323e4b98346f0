"""The `autoglm` command. One module per command; each imports what is heavy when it runs, not before."""

import os
from importlib.metadata import version
from typing import Annotated

import typer

from autoglm.cli import bench, bundle, cache, chat, doctor, evaluate, keys, plan, serve, train
from autoglm.common import environment

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"autoglm {version('autoglm-mesh')}")
        raise typer.Exit


@app.callback()
def autoglm(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve AutoGLM-Phone, an assistant that sees screens and hears speech, and work with it."""
    command = context.invoked_subcommand
    reads = environment.MESH if command in ("serve", "doctor") else environment.COMMANDS
    context.obj = reviewed = environment.review(os.environ, reads)
    if command == "doctor":  # which reports it among its checks
        return
    for warning in reviewed.warnings:
        typer.echo(f"autoglm {command}: warning: {warning}", err=True)
    for fault in reviewed.faults[:1]:
        typer.echo(f"autoglm {command}: {fault}", err=True)
        raise typer.Exit(1)


app.command()(serve.serve)
app.command()(chat.chat)
app.command()(doctor.doctor)
app.command()(plan.plan)
app.add_typer(evaluate.app, name="eval")
app.add_typer(bench.app, name="bench")
app.add_typer(bundle.app, name="bundle")
app.add_typer(cache.app, name="cache")
app.add_typer(keys.app, name="keys")
app.add_typer(train.app, name="train")

if __name__ == "__main__":
    app()
