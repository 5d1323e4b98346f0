"""`autoglm bundle`: assembles bundles from published weights, and checks bundles."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoglm.cli.options import AsJson, needing, print_json
from autoglm.common.bundle import BundleError
from autoglm.common.progress import shown_progress

if TYPE_CHECKING:
    from autoglm.bundles.check import BundleReport
    from autoglm.bundles.placement import Placed

app = typer.Typer(help="Assemble and check bundles.", no_args_is_help=True)


class Preset(StrEnum):
    """Bundles that can be assembled from published weights."""

    GCMA_9B = "autoglm-phone-9b-gcma"


# MobileViT is published as a pickle; this pull request has the same weights as safetensors.
VISION = "apple/mobilevit-small@refs/pr/2"
SPEECH = "openai/whisper-tiny"
DECODER = "zai-org/glm-4-9b-chat-hf"


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="Folder of the new bundle; must not exist.")],
    preset: Annotated[Preset, typer.Option(help="Which bundle to assemble.")],
    vision: Annotated[str, typer.Option(help="MobileViT: folder or hub id.")] = VISION,
    speech: Annotated[str, typer.Option(help="Whisper: folder or hub id.")] = SPEECH,
    decoder: Annotated[str, typer.Option(help="GLM chat model: folder or hub id.")] = DECODER,
) -> None:
    """Assemble a bundle from published weights, with an untrained fusion whose gates are closed."""
    with needing("serve", "bundle init"):
        from autoglm.bundles.preset import Sources, assemble
    try:
        bundle = assemble(out, preset.value, Sources(vision, speech, decoder), typer.echo)
    except (BundleError, OSError) as error:
        raise _refuse("init", error) from None
    typer.echo(f"{bundle.root} is complete. Check: autoglm bundle check {out}. Serve: autoglm serve --bundle {out}")


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    gpus: Annotated[
        str | None,
        typer.Option(help="Memory of the GPUs to plan for, as 24GB,24GB.", show_default="the GPUs here"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check files and shapes of a bundle, and on which devices it fits; exit status 1 for a fault."""
    with needing("serve", "bundle check"):
        from autoglm.bundles import placement
        from autoglm.bundles.check import check as look_at
        from autoglm.cli import mesh
        from autoglm.common.memory import available_memory
    try:
        devices = placement.gpus() if gpus is None else placement.parse(gpus)
        with shown_progress() as progress:
            progress.add_task("Hashing and comparing every file", total=None)
            report = look_at(bundle, "BUNDLE")
    except BundleError as error:
        raise _refuse("check", error) from None
    homes = mesh.placement(len(devices))
    placed = placement.place(report, devices or [placement.Device("cpu", available_memory())], homes)
    if as_json:
        rows = [{**asdict(each), "fits": each.fits} for each in placed]
        print_json({**asdict(report), "sound": not report.faults, "placement": rows})
    else:
        _print(report, placed)
    raise typer.Exit(1 if report.faults else 0)


def _refuse(command: str, error: Exception) -> typer.Exit:
    typer.echo(f"autoglm bundle {command}: {error}", err=True)
    return typer.Exit(1)


def _print(report: "BundleReport", placed: "list[Placed]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("Part", "Model", "Parameters", "bf16", "INT8", "not loaded", title=report.bundle)
    for part in report.parts:
        unused = f"{part.unused:,}" if part.unused else ""
        sizes = (_size(part.bf16), _size(part.int8))
        table.add_row(part.name, part.model, f"{part.parameters:,}", *sizes, unused)
    Console().print(table)
    for line in (*map(_where, placed), *(f"note: {note}" for note in report.notes)):
        typer.echo(line)
    for fault in report.faults:
        typer.echo(f"fault: {fault}")
    if not report.faults:
        typer.echo("The bundle is sound.")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _where(placed: "Placed") -> str:
    head = f"{placed.device} ({_size(placed.memory)}): {', '.join(placed.services)}, {_size(placed.weights)} of weights"
    if not placed.fits:
        return f"{head}: does not fit" + (f", {_size(-placed.left)} are lacking" if placed.left < 0 else "")
    if not placed.sequences:
        return f"{head}: fits"
    return f"{head}: fits with max_num_seqs {placed.sequences} and max_model_len {placed.length} of the decoder"
