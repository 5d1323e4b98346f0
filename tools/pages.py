"""What tools that write a part of a page share."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_or_check(page: Path, fresh: str) -> None:
    """Write `fresh` as the text of `page`; with --check on the command line, fail instead if the page differs."""
    if "--check" not in sys.argv:
        page.write_text(fresh, encoding="utf-8")
    elif fresh != page.read_text(encoding="utf-8"):
        raise SystemExit(f"{page.relative_to(ROOT)} is out of date: run {sys.argv[0]}")
