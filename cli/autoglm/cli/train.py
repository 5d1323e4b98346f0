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
    workdir: Annotated[Path, typer.Option(help="Folder of the stages' checkpoints and results.")] = Path("runs/nano"),
    stage: Annotated[str | None, typer.Option(help="Run only this stage.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the exported bundle.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with every stage's settings.", show_default="the committed bundle's")
    ] = None,
) -> None:
    """Train the nano bundle from generated data, in stages that can be interrupted and resumed."""
    with needing("train", "train"):
        import autoglm.training.nano as pipeline
        from autoglm.training.recipe import RecipeError
    try:
        pipeline.main(workdir, stage, out, recipe)
    except RecipeError as error:
        print(f"autoglm train: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
