"""`autoglm eval`: how often a bundle is right on held-out cases, and what it makes of real media, vectors and INT8."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from autoglm.cli.options import AsJson, needing, print_json
from autoglm.common.bundle import Bundle, BundleError, chosen_bundle


class _BundleOrCommand(TyperGroup):
    """Reads `eval FOLDER` as the evaluation of a bundle and `eval NAME` as a command, if NAME is one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        command = bool(args) and args[0] in self.commands
        ctx.allow_interspersed_args = not command  # a command's options are its own
        return super().parse_args(ctx, ["", *args] if command else args)


BundleArgument = Annotated[
    Path | None,
    typer.Argument(envvar="AUTOGLM_BUNDLE", help="Folder of the bundle.", show_default="autoglm-phone-nano"),
]
Into = Annotated[
    Path | None, typer.Option(help="Markdown file to update with the tables.", show_default="print the tables")
]
app = typer.Typer(cls=_BundleOrCommand)


@app.callback(invoke_without_command=True)
def evaluate(
    context: typer.Context,
    bundle: BundleArgument = None,
    seed: Annotated[int, typer.Option(help="Seed of the cases.", min=0)] = 11,
    limit: Annotated[
        int, typer.Option(help="Cases of each kind: text, screen, screen and speech, speech.", min=100)
    ] = 1000,
    out: Annotated[Path | None, typer.Option(help="File for the JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw held-out screens and sentences, ask the bundle, and print how often it is right."""
    if context.invoked_subcommand is not None:
        return
    with _running():
        opened = _verified(bundle)
        from autoglm.training.eval import evaluate as evaluation

        report = evaluation.evaluate(opened.root, evaluation.EvalConfig(seed, limit))
    if out is not None:
        evaluation.write(report, out)
    if as_json:
        print_json(report)
    else:
        print(evaluation.table(report))


@app.command()
def real(
    media: Annotated[Path, typer.Option(help="Folder that tools/real_media.sh filled.")],
    bundle: BundleArgument = None,
    into: Into = None,
    as_json: AsJson = False,
) -> None:
    """Transcribe recordings of people and ask about photographs, neither of which the nano bundle was trained on."""
    with _running():
        opened = _verified(bundle)
        from autoglm.training.eval import real_media
        from autoglm.training.eval.media_files import MediaError

        try:
            report = real_media.examine(opened, media)
        except MediaError as error:
            raise _failed(error) from None
    if into is None and as_json:
        print_json(report)
    else:
        _hand_over(real_media.markdown(report), real_media.MARK, into)


@app.command()
def retrieval(bundle: BundleArgument = None, into: Into = None) -> None:
    """Search held-out screens, recordings and texts with the vectors of /v1/embeddings."""
    with _running():
        opened = _verified(bundle)
        from autoglm.training.eval import retrieval as evaluation

        table = evaluation.markdown(opened, evaluation.measure(evaluation.Vectors(opened.root)))
    _hand_over(table, evaluation.MARK, into)


@app.command()
def int8(bundle: BundleArgument = None) -> None:
    """Compare INT8 with float on this machine, which should be idle: speed, and accuracy of the vision encoder."""
    with _running():
        opened = _verified(bundle)
        from autoglm.training.eval import int8 as evaluation

        print(evaluation.speed(opened.root), evaluation.accuracy(opened.root / "vision"), sep="\n\n")


@contextmanager
def _running() -> Iterator[None]:
    """End with one line for a missing package (exit status 1) and for Ctrl-C (130)."""
    try:
        with needing("train", "eval"):
            yield
    except KeyboardInterrupt:
        print("autoglm eval: stopped; nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None


def _verified(folder: Path | None) -> Bundle:
    try:
        bundle = Bundle.open(folder or chosen_bundle(), "BUNDLE or AUTOGLM_BUNDLE")
        bundle.verify()
    except BundleError as error:
        raise _failed(error) from None
    return bundle


def _failed(error: Exception) -> typer.Exit:
    print(f"autoglm eval: {error}", file=sys.stderr)
    return typer.Exit(1)


def _hand_over(tables: str, mark: str, into: Path | None) -> None:
    """Print the tables, or write them into a document after the line `mark`."""
    if into is None:
        print(tables, end="")
        return
    from autoglm.training.document import fill

    fill(into, mark, tables)
