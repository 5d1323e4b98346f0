"""The metrics of a running mesh: all that docs/metrics.md has, from the gateway and through Ray's agents."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from ..asking import Asker
from ..mesh import Mesh
from ..unit.gateway.samples import audio_part, image_part, png, wav
from ..waiting import NET_SECONDS, eventually

PAGE = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
DOCUMENTED = {name.removesuffix("_total") for name in re.findall(r"^\| `((?:ray_)?autoglm_\w+)`", PAGE, re.MULTILINE)}


def samples(text: str) -> Mapping[str, list[Sample]]:
    """Return the samples of the mesh's own metrics by the name of their family."""
    found = defaultdict[str, list[Sample]](list)
    for family in text_string_to_metric_families(text):
        if "autoglm_" in family.name:
            found[family.name.removesuffix("_total")] += family.samples
    return found


def services(mesh: Mesh) -> Mapping[str, list[Sample]]:
    """Scrape Ray's agent."""
    address = next(line for line in mesh.lines() if "Service metrics at " in line).split(" at ")[1]
    return samples(httpx.get(address, timeout=NET_SECONDS, trust_env=False).text)


def test_every_metric_of_the_page_is_served(mesh: Mesh, ask: Asker) -> None:
    parts = [image_part(png()), audio_part(wav(1)), {"type": "text", "text": "What is this?"}]
    body = {"model": "", "messages": [{"role": "user", "content": parts}], "max_tokens": 8}
    assert ask.http.post("/v1/chat/completions", json=body).status_code == 200
    gateway = set(samples(ask.http.get("/metrics").text))
    wanted = {name for name in DOCUMENTED if name.startswith("ray_")}
    assert gateway == DOCUMENTED - wanted
    eventually(lambda: wanted <= set(services(mesh)), f"Ray's agent has {sorted(wanted)}")
    assert wanted == set(services(mesh))


def test_what_the_decoder_does_is_seen_without_a_health_check(mesh: Mesh, ask: Asker) -> None:
    def generated() -> float:
        return sum(sample.value for sample in services(mesh)["ray_autoglm_generation_tokens"])

    before = generated()
    assert ask("1+1", max_tokens=8)
    eventually(lambda: generated() > before, "the tokens are counted")
    found = services(mesh)
    assert [sample.value for sample in found["ray_autoglm_num_preemptions"]] == [0]
    (last,) = found["ray_autoglm_last_token_timestamp_seconds"]
    assert last.value > 1e9


def test_each_replica_says_what_it_runs(mesh: Mesh) -> None:
    def described() -> set[tuple[str, str]]:
        return {(s.labels["application"], s.labels["engine"]) for s in services(mesh)["ray_autoglm_build_info"]}

    eventually(lambda: described() == {("vision", "torch"), ("speech", "torch"), ("decoder", "embedded")}, "all do")
    for sample in services(mesh)["ray_autoglm_build_info"]:
        assert all(sample.labels[name] for name in ("version", "bundle", "revision", "device"))
