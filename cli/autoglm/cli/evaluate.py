"""`autoglm eval`: how often a bundle is right, on held-out cases drawn for a seed."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from autoglm.common.bundle import Bundle, BundleError, chosen_bundle


def evaluate(
    bundle: Annotated[
        str, typer.Argument(help="Folder of the bundle.", show_default="AUTOGLM_BUNDLE, else the nano bundle")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the cases.", min=0)] = 11,
    limit: Annotated[
        int, typer.Option(help="Cases of each kind: text, screen, screen and speech, speech.", min=100)
    ] = 1000,
    out: Annotated[Path | None, typer.Option(help="File for the JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the tables.")] = False,
) -> None:
    """Draw held-out screens and sentences, ask the bundle, and print how often it is right."""
    try:
        opened = Bundle.open(chosen_bundle(bundle))
        opened.verify()
        from autoglm.training import evaluate as exam
    except BundleError as error:
        print(f"autoglm eval: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        print(f"autoglm eval: {error.name} is missing; install autoglm-mesh[train]", file=sys.stderr)
        raise typer.Exit(1) from None
    try:
        report = exam.evaluate(opened.root, exam.ExamConfig(seed, limit))
    except KeyboardInterrupt:
        print("autoglm eval: stopped; nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None
    if out is not None:
        exam.write(report, out)
    print(json.dumps(report, indent=2) if as_json else exam.table(report))
