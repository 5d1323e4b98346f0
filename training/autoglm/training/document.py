"""Documents whose last part is written by a command, after a line that says so."""

from collections.abc import Mapping
from pathlib import Path


def fill(document: Path, mark: str, written: str) -> None:
    """Replace what follows the line `mark` of `document` by `written`; without such a line, append both."""
    text, _, _ = document.read_text(encoding="utf-8").partition(mark)
    document.write_text(f"{text}{mark}\n{written}", encoding="utf-8")


def weights(revisions: Mapping[str, str]) -> str:
    """Return the line that names the weights, part by part, that were measured."""
    return f"Weights: {', '.join(f'{name} {revision}' for name, revision in revisions.items())}."
