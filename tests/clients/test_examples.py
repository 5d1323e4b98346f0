"""The programs in examples/, run as the README says."""

import subprocess
import sys
from pathlib import Path

import pytest

from ..mesh import Mesh

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def node() -> None:
    """Node.js, and what the examples in JavaScript import."""
    subprocess.run(["sh", str(ROOT / "tools/node.sh")], check=True)


def run(name: str, address: str) -> str:
    command = ["node" if name.endswith(".js") else sys.executable, str(EXAMPLES / name), address]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_openai(base_url: str) -> None:
    out = run("openai_client.py", base_url)
    first, again = (out.partition("again:")[i] for i in (0, 2))
    assert first.startswith("first: <think>")
    assert "</think><answer>do(action=" in first
    assert "cache: image miss, audio miss" in first
    assert "cache: image local, audio local" in again


def test_langchain(base_url: str) -> None:
    assert "AutoGLM-Phone" in run("langchain_client.py", base_url)


def test_grpc(mesh: Mesh) -> None:
    answer, figures = run("grpc_client.py", mesh.grpc_address).splitlines()
    assert answer
    assert figures.startswith("prompt ")


@pytest.mark.usefixtures("node")
def test_openai_node(base_url: str) -> None:
    whole, streamed = run("node/openai.js", base_url).splitlines()
    assert "do(action=" in whole
    assert streamed == whole


@pytest.mark.usefixtures("node")
def test_grpc_from_node(mesh: Mesh) -> None:
    told = run("grpc_client.py", mesh.grpc_address)
    assert told.startswith(run("node/grpc.js", mesh.grpc_address).rstrip("\n"))


def test_typed(mesh: Mesh) -> None:
    action, first, answer, second = run("typed_client.py", mesh.grpc_address).splitlines()
    assert "do(action=" in action
    assert first.startswith("image ")
    assert answer
    assert second.startswith("image local, ")
