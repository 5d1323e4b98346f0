"""`autoglm train`: make what is served."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from autoglm.cli.options import needing

app = typer.Typer(help="Train and export bundles.", no_args_is_help=True)


@app.callback()
def train() -> None:
    """Train and export bundles."""


@app.command()
def nano(
    workdir: Annotated[Path, typer.Option(help="Where stages keep their checkpoints.")] = Path("runs/nano"),
    stage: Annotated[str | None, typer.Option(help="Run this stage only.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the exported bundle.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with every stage's settings.", show_default="the committed bundle's")
    ] = None,
) -> None:
    """Train the nano bundle from generated data, on the CPU, in resumable stages."""
    with needing("train", "train"):
        import autoglm.training.nano as pipeline
        from autoglm.training.recipe import RecipeError
    try:
        pipeline.main(workdir, stage, out, recipe)
    except RecipeError as error:
        print(f"autoglm train: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
