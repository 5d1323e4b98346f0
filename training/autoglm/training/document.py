"""Documents whose last part a command writes, from the line that says so on."""

from collections.abc import Mapping
from pathlib import Path


def fill(document: Path, mark: str, written: str) -> None:
    """Put `written` behind the line `mark` of `document`, in place of what stands there, or at the end without one."""
    text, _, _ = document.read_text(encoding="utf-8").partition(mark)
    document.write_text(f"{text}{mark}\n{written}", encoding="utf-8")


def weights(revisions: Mapping[str, str]) -> str:
    """Return the line that says which weights, part by part, the figures are of."""
    return f"Weights: {', '.join(f'{name} {revision}' for name, revision in revisions.items())}."
