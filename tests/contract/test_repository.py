"""What must hold of the tree itself: one namespace, generated code from its source, no torch in the gateway."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grpc_docs
import metrics_docs
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

from autoglm.cli.reference import document

from ..published import CLIENTS, PAGE, page

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"


def roots() -> list[Path]:
    """Return the source roots that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [ROOT / name for name in project["tool"]["hatch"]["build"]["dev-mode-dirs"]]


def test_autoglm_is_a_namespace_package() -> None:
    assert [root for root in roots() if not (root / "autoglm").is_dir()] == []
    assert [root for root in roots() if (root / "autoglm" / "__init__.py").exists()] == []


def test_the_wheel_holds_every_root() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert {ROOT / package for package in wheel["wheel"]["packages"]} == {root / "autoglm" for root in roots()}


def test_every_leaf_package_is_typed() -> None:
    leaves = [leaf for root in roots() for leaf in (root / "autoglm").iterdir() if any(leaf.glob("*.py"))]
    assert [leaf for leaf in leaves if not (leaf / "py.typed").exists()] == []


def test_imports_point_one_way() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_generated_code_is_current(tmp_path: Path) -> None:
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("autoglm/v1/*.proto"))
    kinds = ("python", "grpc_python", "mypy", "mypy_grpc")
    plugins = [f"--plugin=protoc-gen-{k}={Path(sys.executable).with_name(f'protoc-gen-{k}')}" for k in kinds[2:]]
    flags = [f"-I{PROTOS}", *plugins, *(f"--{kind}_out={tmp_path}" for kind in kinds)]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *flags, *sources], check=True, cwd=PROTOS)
    generated = {path.name: path.read_text() for path in (tmp_path / "autoglm/v1").iterdir()}
    committed = {path.name: path.read_text() for path in (PROTOS / "autoglm/v1").glob("*_pb2*.py*")}
    assert committed == generated


@pytest.mark.parametrize("arguments", [("lint",), ("breaking", "--against", "protos/autoglm-v1.binpb")])
def test_buf_is_content(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([Path(sys.executable).with_name("buf"), *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_lock_file_names_no_registry() -> None:
    assert '"resolved"' not in (ROOT / "examples/node/package-lock.json").read_text(encoding="utf-8")


def test_files_stay_readable() -> None:
    python = [path for root in roots() for path in root.rglob("*.py") if "_pb2" not in path.name]
    assert [path.name for path in python if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []


def test_the_configuration_page_is_current() -> None:
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == document()


def test_the_grpc_page_is_current() -> None:
    assert (ROOT / "docs/grpc.md").read_text(encoding="utf-8") == grpc_docs.document()


def test_the_metrics_page_is_current() -> None:
    assert (ROOT / "docs/metrics.md").read_text(encoding="utf-8") == metrics_docs.document()


def test_the_metrics_page_explains_every_metric() -> None:
    rows = re.findall(r"^\| `(?:ray_)?autoglm_\w+` \|.*$", metrics_docs.document(), re.MULTILINE)
    assert len(rows) > 40
    assert not [row for row in rows if row.endswith("|  |")]


def test_the_grpc_page_has_every_public_element() -> None:
    page = (ROOT / "docs/grpc.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (\S+)$", page, re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert {"ChatService.StreamComplete", "EmbeddingService.Embed", "Media", "CacheOutcome", "Role"} <= set(headings)
    assert set(re.findall(r"\(#(\w+)\)", page)) <= {heading.lower() for heading in headings}
    assert not re.search(r"^\|.*\| +\|$", page, re.MULTILINE)  # a field without a comment
    assert "DecoderService" not in page


def test_the_requests_of_the_grpc_page_are_requests() -> None:
    page = (ROOT / "docs/grpc.md").read_text(encoding="utf-8")
    examples = re.findall(r"-d '(.*?)' \\\n +\S+ autoglm\.v1\.(\w+)/(\w+)", page)
    assert {service for service, _ in (example[1:] for example in examples)} == {"ChatService", "EmbeddingService"}
    for text, service, method in examples:
        found = Default().FindServiceByName(f"autoglm.v1.{service}").FindMethodByName(method)
        json_format.Parse(text, GetMessageClass(found.input_type)())


def test_the_clients_page_is_current() -> None:
    """Its table has the pinned versions, and a mark for each kind of request that a client is tested with."""
    assert PAGE.read_text(encoding="utf-8") == page({client.name: client.tests for client in CLIENTS})
