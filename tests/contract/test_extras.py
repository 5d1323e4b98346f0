"""Each extra of the package brings all that its part imports, so that an image with that extra alone works."""

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ELSEWHERE = {"vllm"}  # docs/operate.md says how to install it


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("autoglm", include_external_packages=True, exclude_type_checking_imports=True)


def brought(requirements: list[str]) -> Iterator[str]:
    """Yield the distributions that requirements bring here, by their canonical names."""
    waiting, seen = [(each, "") for each in requirements], set[tuple[str, str]]()
    while waiting:
        found = waiting.pop()
        requirement, extra = Requirement(found[0]), found[1]
        if found in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add(found)
        yield canonicalize_name(requirement.name)
        try:
            further = requires(requirement.name) or []
        except PackageNotFoundError:  # torch for CPUs does without some
            continue
        waiting += [(each, asked) for each in further for asked in ("", *requirement.extras)]


@pytest.mark.parametrize("part", ["gateway", "vision", "speech", "decoder"])
def test_an_extra_brings_what_its_part_imports(part: str, graph: grimp.ImportGraph) -> None:
    reached = graph.find_upstream_modules(f"autoglm.{part}", as_package=True)
    imported = {name.partition(".")[0] for name in reached} - sys.stdlib_module_names - {"autoglm"} - ELSEWHERE
    installed = set(brought([*PROJECT["dependencies"], *PROJECT["optional-dependencies"][part]]))
    distributions = packages_distributions()
    missing = {
        module for module in imported if not installed & {canonicalize_name(each) for each in distributions[module]}
    }
    assert imported
    assert missing == set()
