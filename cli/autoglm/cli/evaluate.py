"""`autoglm eval`: how often a bundle is right, on held-out cases drawn for a seed."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from autoglm.cli.options import AsJson, needing, print_json
from autoglm.common.bundle import Bundle, BundleError, chosen_bundle


def evaluate(
    bundle: Annotated[
        Path | None,
        typer.Argument(envvar="AUTOGLM_BUNDLE", help="Folder of the bundle.", show_default="autoglm-phone-nano"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the cases.", min=0)] = 11,
    limit: Annotated[
        int, typer.Option(help="Cases of each kind: text, screen, screen and speech, speech.", min=100)
    ] = 1000,
    out: Annotated[Path | None, typer.Option(help="File for the JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw held-out screens and sentences, ask the bundle, and print how often it is right."""
    try:
        opened = Bundle.open(bundle or chosen_bundle())
        opened.verify()
    except BundleError as error:
        print(f"autoglm eval: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    with needing("train", "eval"):
        from autoglm.training.eval import evaluate as exam
    try:
        report = exam.evaluate(opened.root, exam.EvalConfig(seed, limit))
    except KeyboardInterrupt:
        print("autoglm eval: stopped; nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None
    if out is not None:
        exam.write(report, out)
    if as_json:
        print_json(report)
    else:
        print(exam.table(report))
