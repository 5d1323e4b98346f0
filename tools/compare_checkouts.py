"""Run a benchmark in two checkouts in turn, and compare their figures: is this version slower than that one?

`python tools/compare_checkouts.py OTHER engine|gateway [--rounds 5]` runs `autoglm bench … --quick --json` in OTHER and
in this checkout, each with its own .venv, in alternating order. It prints a Markdown table: the median of both sides
over the rounds, and the ratio of this checkout to OTHER round by round. Nothing else should run on the machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
Figures = Mapping[str, float]


def run(checkout: Path, bench: str) -> Figures:
    """Return the median of every measure of one quick run in `checkout`."""
    with tempfile.TemporaryDirectory() as out:
        command = [str(checkout / ".venv/bin/autoglm"), "bench", bench, "--quick", "--json", "--out", out]
        done = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    return dict(figures(json.loads(done.stdout)))


def figures(report: Mapping[str, list[dict[str, object]]]) -> Iterator[tuple[str, float]]:
    """Yield the measures of the program itself (not its peers) in a report of `bench engine` or `bench gateway`."""
    for row in report["rows"]:
        own = row.get("ours") or row.get("gateway")
        assert isinstance(own, dict)
        yield f"{row.get('model', '')} {row['measure']}".strip(), float(own["median"])


def table(before: list[Figures], after: list[Figures]) -> Iterator[str]:
    """Yield the lines of the table; measures are matched by their order, as their wording may have changed."""
    yield "| Measure | Before | After | After / before (least–most) | Better |"
    yield "|---|--:|--:|--:|---|"
    for index, measure in enumerate(after[0]):
        old, new = ([list(each.values())[index] for each in side] for side in (before, after))
        ratios = [b / a for a, b in zip(old, new, strict=True)]
        better = "less" if " ms " in f" {measure} " or "KiB" in measure else "more"
        spread = f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        yield f"| {measure} | {median(old):.4g} | {median(new):.4g} | {spread} | {better} |"


def main() -> None:
    """Compare this checkout with another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="The other checkout, with its .venv.")
    parser.add_argument("bench", choices=("engine", "gateway"), help="The benchmark.")
    parser.add_argument("--rounds", type=int, default=5, help="Rounds, each with one run of both sides.")
    arguments = parser.parse_args()
    before, after = list[Figures](), list[Figures]()
    for number in range(arguments.rounds):
        sides = [(arguments.other.resolve(), before), (ROOT, after)]
        for checkout, found in sides if number % 2 == 0 else reversed(sides):
            print(f"round {number + 1} of {arguments.rounds}: {checkout.name}", file=sys.stderr)
            found.append(run(checkout, arguments.bench))
    print("\n".join(table(before, after)))


if __name__ == "__main__":
    main()
