"""The published clients of tests/clients/published: which there are, how they run, and what docs/clients.md shows.

`python -m tests.published` starts a mesh, runs every client against it, and writes the table of docs/clients.md.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from xml.etree import ElementTree

from .gateway import running_gateway
from .mesh import Mesh, running_mesh

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests/clients/published"
PAGE = ROOT / "docs/clients.md"
OURS, THEIRS = Path(sys.executable), ROOT / ".venv-clients/bin/python"
LOCAL = "http://localhost:8000/v1"  # in the snippets of the page

# Nothing but the mesh can be reached: what a client fetches by itself, such as lists of prices, is switched off.
ENVIRONMENT = {
    "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "1", "LITELLM_OFFLINE_MODE": "true",
    "OPENAI_API_KEY": "",
}  # fmt: skip
COLUMNS = (
    "chat", "stream", "images", "audio", "tools", "structured", "responses", "embeddings", "transcriptions", "models",
    "errors",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedClient:
    """A client: its name, the file with its tests, the packages whose versions count, and the pins they come from."""

    name: str
    file: str
    packages: tuple[str, ...]
    pins: str = "constraints.txt"

    @property
    def versions(self) -> Sequence[str]:
        """The packages that are tested, each with its version."""
        return [f"{package} {_pinned(self.pins)[package]}" for package in self.packages]

    @property
    def is_node(self) -> bool:
        """Whether it runs in Node.js."""
        return self.file.endswith(".mjs")

    @cached_property
    def tests(self) -> Sequence[str]:
        """The names of its tests, as they are written in its file."""
        source = (FOLDER / self.file).read_text(encoding="utf-8")
        found: list[str] = re.findall(r'^test\("(\w+)"' if self.is_node else r"^def test_(\w+)", source, re.MULTILINE)
        return found

    @property
    def python(self) -> Path:
        """The interpreter that has its packages."""
        return THEIRS if self.pins == "tools/clients.txt" else OURS

    def command(self, report: Path) -> Sequence[str]:
        """Return the command line that runs its tests and reports in JUnit's format."""
        file = str(FOLDER / self.file)
        if self.is_node:
            return ("node", "--test", "--test-reporter=junit", f"--test-reporter-destination={report}", file)
        return (str(self.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", file)


CLIENTS = (
    PublishedClient("openai-python", "use_openai.py", ("openai",)),
    PublishedClient("openai-node", "use_openai_node.mjs", ("openai",), "examples/node/package-lock.json"),
    PublishedClient("LangChain", "use_langchain.py", ("langchain-openai", "openai")),
    PublishedClient("LiteLLM", "use_litellm.py", ("litellm", "openai"), "tools/clients.txt"),
    PublishedClient("Instructor", "use_instructor.py", ("instructor", "openai"), "tools/clients.txt"),
    PublishedClient("Pydantic AI", "use_pydantic_ai.py", ("pydantic-ai-slim", "openai")),
    PublishedClient(
        "LlamaIndex",
        "use_llama_index.py",
        ("llama-index-llms-openai-like", "llama-index-embeddings-openai-like", "openai"),
        "tools/clients.txt",
    ),
    PublishedClient("llm", "use_llm.py", ("llm", "openai")),
)


@cache
def _pinned(pins: str) -> Mapping[str, str]:
    text = (ROOT / pins).read_text(encoding="utf-8")
    if pins.endswith(".json"):
        packages = json.loads(text)["packages"].items()
        return {path.removeprefix("node_modules/"): each["version"] for path, each in packages if path}
    return dict(line.split("==") for line in text.splitlines() if "==" in line)


def install() -> None:
    """Install what the tests of the clients need beyond our own packages."""
    for script in ("node.sh", "clients.sh"):
        subprocess.run(["sh", str(ROOT / "tools" / script)], check=True)


def failures(client: PublishedClient, base_url: str, locked_url: str) -> Mapping[str, str]:
    """Run a client's tests against two APIs, the second of which wants the key `secret`.

    Returns each test's name with why it failed, or "" when it passed.
    """
    environment = os.environ | ENVIRONMENT | {"MESH_URL": base_url, "LOCKED_MESH_URL": locked_url}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(client.command(report), env=environment, capture_output=True, text=True, cwd=FOLDER)
        assert report.exists(), done.stdout + done.stderr
        cases = ElementTree.parse(report).iter("testcase")
    results = dict.fromkeys(client.tests, "")
    seen = set()
    for case in cases:
        name = case.attrib["name"].partition("[")[0].removeprefix("test_")
        seen.add(name)
        results[name] += "".join("".join(each.itertext()) for each in case if each.tag in ("failure", "error"))
    assert seen == set(results), done.stdout + done.stderr
    return results


def snippet(client: PublishedClient, base_url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what the page tells a client's users to write, with another address; `folder` is its home."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {client.name}\n")[2].partition("\n## ")[0]
    found = re.search(r"```(\w+)\n(.*?)```", section, re.DOTALL)
    assert found, f"docs/clients.md shows nothing to write for {client.name}"
    language, code = found[1], found[2]
    assert LOCAL in code
    commands = {"python": [str(client.python), "-c"], "js": ["node", "--input-type=module", "-e"], "sh": ["sh", "-euc"]}
    environment = os.environ | ENVIRONMENT | {"HOME": str(folder), "PATH": f"{OURS.parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [*commands[language], code.replace(LOCAL, base_url)],
        env=environment, capture_output=True, text=True, cwd=ROOT / "examples/node",
    )  # fmt: skip


def table(passed: Mapping[str, Sequence[str]]) -> str:
    """Return the page's table from each client's tests that passed; a test's column is the first word of its name."""
    lines = [f"| Client | Versions | {' | '.join(COLUMNS)} |", "|---|---|" + ":-:|" * len(COLUMNS)]
    for client in CLIENTS:
        held = {name.partition("_")[0] for name in passed[client.name]}
        cells = " | ".join("✓" if column in held else "–" for column in COLUMNS)
        lines.append(
            f"| [{client.name}](#{client.name.lower().replace(' ', '-')}) | {', '.join(client.versions)} | {cells} |"
        )
    return "\n".join(lines) + "\n"


def page(passed: Mapping[str, Sequence[str]]) -> str:
    """Return docs/clients.md with a new table."""
    text = PAGE.read_text(encoding="utf-8")
    return re.sub(r"\| Client \|.*\n(?:\|.*\n)+", lambda _: table(passed), text)


def _run_all(mesh: Mesh) -> Mapping[str, Mapping[str, str]]:
    with running_gateway(mesh, api_keys="secret") as locked:
        return {client.name: failures(client, f"{mesh.http_url}/v1", f"{locked}/v1") for client in CLIENTS}


def main() -> None:
    """Write the table; a cell is empty when one of its tests failed, and what failed is printed."""
    install()
    with tempfile.TemporaryDirectory() as folder, running_mesh(Path(folder) / "serve.log") as mesh:
        results = _run_all(mesh)
    for client, tests in results.items():
        for name, failure in tests.items():
            if failure:
                print(f"{client}: {name}\n{failure}", file=sys.stderr)
    bad = {
        client: {name.partition("_")[0] for name, failure in tests.items() if failure}
        for client, tests in results.items()
    }
    passed = {
        client: [name for name in tests if name.partition("_")[0] not in bad[client]]
        for client, tests in results.items()
    }
    PAGE.write_text(page(passed), encoding="utf-8")


if __name__ == "__main__":
    main()
