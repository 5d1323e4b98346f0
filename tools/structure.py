"""Measure how the code is built: files, lines and functions of each room, and class names with two meanings.

`python tools/structure.py` prints Markdown, with `--json` the same as JSON; `--tree DIR` measures another checkout, so
that two releases can be compared. Needs nothing but Python.
"""

import argparse
import ast
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "protos",
    "common",
    "gateway",
    "services/vision",
    "services/speech",
    "services/fusion",
    "services/decoder",
    "client",
    "cli",
    "bundles",
    "training",
    "benchmarks",
)
IGNORE = re.compile(r"#\s*type:\s*ignore")


@dataclass(frozen=True, slots=True)
class RoomReport:
    """The size of a room: its files and lines, and the lines of its functions (0 without functions)."""

    room: str
    files: int
    lines: int
    functions: int
    median: float
    p90: float
    longest: int
    longest_name: str


def room_report(room: str, files: Mapping[Path, str]) -> RoomReport:
    """Measure the files of a room, given with their text."""
    sizes = [size for path, text in files.items() if path.suffix == ".py" for size in function_sizes(path, text)]
    lengths = sorted(length for length, _ in sizes)
    longest, name = max(sizes, default=(0, ""))
    return RoomReport(
        room,
        files=len(files),
        lines=sum(len(text.splitlines()) for text in files.values()),
        functions=len(sizes),
        median=statistics.median(lengths) if lengths else 0,
        p90=statistics.quantiles(lengths, n=10)[-1] if len(lengths) > 1 else longest,
        longest=longest,
        longest_name=name,
    )


def function_sizes(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of each function, docstring included and decorators excluded, and where it is."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{path.stem}.{node.name}"


def sources(tree: Path, room: str) -> dict[Path, str]:
    """Return the handwritten code of a room: Python and protos, without what protoc generates."""
    folder = tree / room / "autoglm"
    paths = sorted((*folder.rglob("*.py"), *folder.rglob("*.proto")))
    return {path: path.read_text(encoding="utf-8") for path in paths if "_pb2" not in path.name}


def product_files(tree: Path) -> dict[Path, str]:
    """Return the handwritten code of all rooms."""
    return {path: text for room in ROOMS for path, text in sources(tree, room).items()}


def shared_class_names(tree: Path, files: Mapping[Path, str]) -> dict[str, list[str]]:
    """Return the class names that two or more modules define, with those modules."""
    found = defaultdict[str, list[str]](list)
    for path, text in files.items():
        nodes = ast.walk(ast.parse(text)) if path.suffix == ".py" else ()
        for name in sorted({node.name for node in nodes if isinstance(node, ast.ClassDef)}):
            found[name].append(str(path.relative_to(tree)))
    return {name: modules for name, modules in sorted(found.items()) if len(modules) > 1}


def count_ignores(texts: Iterable[str]) -> int:
    """Return how many lines tell mypy to ignore something."""
    return sum(len(IGNORE.findall(text)) for text in texts)


def measure(tree: Path) -> dict[str, Any]:
    """Return the report of a checkout, in types that JSON has."""
    rooms = {room: sources(tree, room) for room in ROOMS}
    product = product_files(tree)
    tests = [path.read_text(encoding="utf-8") for path in (tree / "tests").rglob("*.py")]
    reports = [room_report(room, files) for room, files in rooms.items()] + [room_report("all", product)]
    return {
        "rooms": [asdict(report) for report in reports],
        "class_names_with_two_meanings": shared_class_names(tree, product),
        "type_ignores": {"product": count_ignores(product.values()), "tests": count_ignores(tests)},
    }


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        "| Room | Files | Lines | Functions | Median | 90th percentile | Longest |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for room in report["rooms"]:
        figures = f"{room['files']} | {room['lines']} | {room['functions']} | {room['median']:g} | {room['p90']:g}"
        longest = f"{room['longest']} {room['longest_name']}" if room["functions"] else ""
        lines.append(f"| {room['room']} | {figures} | {longest} |")
    shared = report["class_names_with_two_meanings"]
    lines += ["", f"Class names with two or more meanings: {len(shared)}"]
    lines += [f"- `{name}`: {', '.join(modules)}" for name, modules in shared.items()]
    ignores = report["type_ignores"]
    lines += ["", f"`type: ignore`: {ignores['product']} in the product, {ignores['tests']} in tests"]
    return "\n".join(lines)


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, default=ROOT, help="Checkout to measure.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of Markdown.")
    arguments = parser.parse_args()
    report = measure(arguments.tree.resolve())
    print(json.dumps(report, indent=2) if arguments.json else markdown(report))


if __name__ == "__main__":
    main()
