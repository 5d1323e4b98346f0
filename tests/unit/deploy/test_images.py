"""The images agree with what runs them: manifests, compose.yaml, the package and its pins."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoglm.common.environment import GATEWAY, SERVICES, review
from autoglm.gateway.settings import Settings

from .kustomize import ROOT, Manifest, of_kind, pods

IMAGES = ROOT / "deploy/images"
SCRIPTS = Path(sys.executable).parent
OURS = ("gateway", "services")
LABELS = {"title", "description", "licenses", "version", "revision", "base.name"}
COMPOSE: Mapping[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
USER = "10001:10001"


@dataclass(frozen=True)
class Dockerfile:
    """The instructions of a Dockerfile, each with the text after it."""

    instructions: Sequence[tuple[str, str]]

    @classmethod
    def read(cls, part: str) -> "Dockerfile":
        """Read the one of an image."""
        text = re.sub(r"^#.*\n", "", (IMAGES / f"{part}.Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        lines = re.sub(r"\\\n\s*", "", text).splitlines()
        return cls([(line.partition(" ")[0], line.partition(" ")[2]) for line in lines if line])

    @property
    def final(self) -> "Dockerfile":
        """The stage that becomes the image."""
        last = max(index for index, (name, _) in enumerate(self.instructions) if name == "FROM")
        return Dockerfile(self.instructions[last:])

    def all(self, name: str) -> list[str]:
        """Return the texts of one kind of instruction."""
        return [text for each, text in self.instructions if each == name]

    def one(self, name: str) -> str:
        """Return the text of an instruction that is there once."""
        (text,) = self.all(name)
        return text


@pytest.fixture(params=OURS)
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dockerfile(part: str) -> Dockerfile:
    return Dockerfile.read(part)


def containers(mesh: Sequence[Manifest], part: str) -> list[Manifest]:
    return [each for pod in pods(mesh) for each in pod.containers if f"autoglm-mesh/{part}:" in each["image"]]


def test_hadolint_finds_nothing(part: str) -> None:
    command = [str(SCRIPTS / "hadolint"), str(IMAGES / f"{part}.Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_would_find_a_base_without_a_version(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\n")
    assert (
        subprocess.run([str(SCRIPTS / "hadolint"), str(tmp_path / "Dockerfile")], capture_output=True).returncode == 1
    )


def test_both_stages_have_one_base_with_a_version(dockerfile: Dockerfile) -> None:
    assert dockerfile.all("FROM") == ["${BASE} AS build", "${BASE}"]
    base = dockerfile.all("ARG")[0]
    found = re.fullmatch(r"BASE=python:(\d+\.\d+)\.\d+-slim-bookworm", base)
    assert found is not None
    assert found[1] == "{}.{}".format(*sys.version_info), "the Python of the tests"
    assert {Dockerfile.read(each).all("ARG")[0] for each in OURS} == {base}


def test_an_image_is_not_root_and_starts_without_a_shell(dockerfile: Dockerfile) -> None:
    assert dockerfile.final.one("USER") == USER
    for name in ("CMD", "HEALTHCHECK"):
        words = json.loads(re.sub(r".*?(?:CMD )?\[", "[", dockerfile.final.one(name), count=1))
        assert words[0] in {"python", "sh", "wget"}
    assert "ENTRYPOINT" not in dict(dockerfile.final.instructions)  # KubeRay and compose.yaml replace the command


def test_packages_are_pinned_wheels(dockerfile: Dockerfile) -> None:
    commands = [
        each for text in dockerfile.all("RUN") for each in text.split("&&") if re.search(r"pip .*install", each)
    ]
    assert commands
    for command in commands:
        assert "--only-binary :all:" in command
        assert "-c constraints.txt" in command or "PIP_CONSTRAINT=/src/constraints.txt" in dockerfile.all("ENV")
    assert not any("pip" in text for text in dockerfile.final.all("RUN"))


def test_nothing_is_fetched_by_address_and_no_secret_can_get_in(dockerfile: Dockerfile) -> None:
    assert dockerfile.all("ADD") == []
    for text in (*dockerfile.all("ARG"), *dockerfile.all("ENV"), *dockerfile.all("LABEL")):
        assert not re.search("key|password|secret|token", text, re.IGNORECASE), text
    assert not any(re.search("curl|wget http|git clone", text) for text in dockerfile.all("RUN"))


def test_labels_say_what_an_image_is(dockerfile: Dockerfile) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', dockerfile.final.one("LABEL")))
    assert set(labels) == LABELS
    assert labels["licenses"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    assert f"VERSION={version('autoglm-mesh')}" in dockerfile.final.all("ARG")


def test_the_context_is_what_the_package_is_made_of() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {path.partition("/")[0] for path in (*wheel["packages"], *wheel["force-include"])}
    allowed = {line[1:] for line in lines if line.startswith("!")}
    files = {"LICENSE", "README.md", "constraints.txt", "pyproject.toml"}
    inside = {"deploy/images", *(path for path in wheel["force-include"] if path.startswith("deploy/"))}
    assert allowed == needed | files | inside
    assert lines.index("deploy/*") > lines.index("!deploy")


def test_ports_and_users_agree_with_the_manifests(mesh: list[Manifest], part: str, dockerfile: Dockerfile) -> None:
    exposed = {int(port) for port in dockerfile.final.one("EXPOSE").split()}
    used = containers(mesh, part)
    assert used
    ports = {port["name"]: port["containerPort"] for each in used for port in each["ports"]}
    assert exposed == set(ports.values()) - {ports.get("client")}  # nobody has to reach Ray's client server
    for pod in pods(mesh):
        if pod.containers[0] in used:
            secured = pod.spec["securityContext"]
            assert f"{secured['runAsUser']}:{secured['runAsGroup']}" == USER == dockerfile.final.one("USER")


def test_what_an_image_writes_is_a_volume_everywhere(mesh: list[Manifest], part: str, dockerfile: Dockerfile) -> None:
    assert "HOME=/tmp" in dockerfile.final.one("ENV").split()
    assert dockerfile.final.one("WORKDIR") == "/tmp"
    for each in containers(mesh, part):
        assert "/tmp" in {mount["mountPath"] for mount in each["volumeMounts"] if not mount.get("readOnly")}
    assert [each.partition(":")[0] for each in COMPOSE["services"][part]["tmpfs"]] == ["/tmp"]


def test_the_gateway_starts_as_in_the_manifests(mesh: list[Manifest]) -> None:
    (gateway,) = containers(mesh, "gateway")
    assert json.loads(Dockerfile.read("gateway").final.one("CMD")) == gateway["command"]


def test_each_image_has_its_extras_and_only_one_has_weights() -> None:
    extras = {part: re.findall(r"\[([a-z,]+)\]", " ".join(Dockerfile.read(part).all("RUN"))) for part in OURS}
    assert extras == {"gateway": ["gateway"], "services": ["vision,speech,decoder"]}
    assert "rm -r /opt/autoglm/lib/python3*/site-packages/autoglm/assets/bundles" in str(Dockerfile.read("gateway"))


def test_what_a_gpu_needs_is_pinned_apart() -> None:
    pins = {file: pinned(ROOT / file) for file in ("constraints.txt", "deploy/images/constraints-cuda.txt")}
    usual, cuda = pins.values()
    assert "torch" in usual
    assert "triton" in cuda
    assert not usual.keys() & cuda.keys()


def pinned(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_what_builds_an_image_is_pinned_too() -> None:
    for part in OURS:
        (tools,) = re.findall(
            r"/build/bin/pip install .*? (pip hatchling \S+)", " ".join(Dockerfile.read(part).all("RUN"))
        )
        assert set(tools.split()) <= pinned(ROOT / "constraints.txt").keys()


def test_compose_has_a_valid_schema() -> None:
    check = [str(SCRIPTS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(ROOT / "compose.yaml")]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_key_that_compose_does_not_know_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(yaml.safe_dump(dict(COMPOSE) | {"services": {"gateway": {"readonly": True}}}))
    check = [str(SCRIPTS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(wrong)]
    assert subprocess.run(check, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_restricted(name: str) -> None:
    service = COMPOSE["services"][name]
    assert (service["user"], service["read_only"], service["cap_drop"]) == (USER, True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"}
    assert "mem_limit" in service
    assert all(
        volume.endswith(":ro") and (ROOT / volume.split(":")[0]).is_file() for volume in service.get("volumes", ())
    )
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_compose_runs_the_images_of_the_manifests(mesh: list[Manifest]) -> None:
    tags = {name: service["image"] for name, service in COMPOSE["services"].items()}
    for part in OURS:
        assert tags[part] in {each["image"].removesuffix("-cuda") for each in containers(mesh, part)}
        assert COMPOSE["services"][part]["build"] == {"context": ".", "dockerfile": f"deploy/images/{part}.Dockerfile"}
    caches = [each for pod in pods(of_kind(mesh, "Deployment")) for each in pod.containers if each["name"] == "redis"]
    assert tags["redis"] in {each["image"] for each in caches}
    assert COMPOSE["services"]["redis"]["command"][:2] == caches[0]["args"][:2]


def test_compose_gives_the_variables_of_the_base(mesh: list[Manifest]) -> None:
    kustomization = yaml.safe_load((ROOT / "deploy/k8s/base/kustomization.yaml").read_text())
    generated = {each["name"]: each.get("envs") for each in kustomization["configMapGenerator"]}
    files = COMPOSE["services"]["services"]["env_file"]
    assert files == [f"deploy/k8s/base/{file}" for file in generated["autoglm-ray"]]
    (gateway,) = containers(mesh, "gateway")
    ours = COMPOSE["services"]["gateway"]["environment"]
    others = {
        "REDIS_PASSWORD",
        "AUTOGLM_SSL_CERTFILE",
        "AUTOGLM_SSL_KEYFILE",
    }  # for what others than this machine reach
    assert {each["name"] for each in gateway["env"]} - ours.keys() <= others


def test_every_variable_of_compose_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, reads in (("gateway", GATEWAY), ("services", SERVICES)):
        ours = {
            key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
            for key, value in COMPOSE["services"][name]["environment"].items()
            if key.startswith("AUTOGLM_")
        }
        assert {key.removeprefix("AUTOGLM_") for key in ours} <= reads
        assert review(dict(ours), reads=reads) == review({}, reads=reads)
    for key, value in COMPOSE["services"]["gateway"]["environment"].items():
        monkeypatch.setenv(key, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
    assert Settings().serve_address == "services:9000"


def test_compose_reaches_the_ports_of_the_serve_config() -> None:
    serve = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text(encoding="utf-8"))
    gateway, services = (COMPOSE["services"][name] for name in OURS)
    assert gateway["environment"]["AUTOGLM_SERVE_ADDRESS"] == f"services:{serve['grpc_options']['port']}"
    assert set(gateway["networks"]) & set(services["networks"]) == {"mesh"}
    assert COMPOSE["networks"]["mesh"] == {"internal": True}
    check = Dockerfile.read("services").final.one("HEALTHCHECK")
    assert f"http://127.0.0.1:{serve['http_options']['port']}/-/healthz" in check
    published = {port.rpartition(":")[2] for port in gateway["ports"]}
    assert published == {str(Settings().http_port), str(Settings().grpc_port)}


def test_compose_waits_longer_than_the_gateway_drains() -> None:
    grace = float(COMPOSE["services"]["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings().drain_timeout
