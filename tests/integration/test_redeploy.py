"""The applications are deployed again, with other settings and with other weights, while clients ask."""

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc
import pytest
import redis
from safetensors.torch import load_file, save_file

from autoglm.common.bundle import Bundle, chosen_bundle, write_manifest
from autoglm.common.services import SERVICES
from autoglm.gateway.media.cache import MAC_BYTES
from autoglm.gateway.media.redis_entries import PREFIX
from autoglm.v1.embedding_pb2 import Embedding

from ..asking import Asker
from ..cases import screen_cases
from ..mesh import Mesh
from ..redeploy import asking, redeploy
from ..waiting import NET_SECONDS, eventually

OTHER_SETTINGS: Mapping[str, Mapping[str, Any]] = {name: {"args": {"max_queued_requests": 65}} for name in SERVICES}
# Where a GPU has no room for two replicas, the old one ends before the new one starts.
NO_ROOM = {"deployments": [{"name": "Vision", "max_surge_percent": 0}]}


def test_a_config_is_deployed_again_and_no_request_fails(mesh: Mesh, ask: Asker) -> None:
    before = {name: mesh.replica(name).pid for name in SERVICES}
    metadata = {name: mesh.to(name) for name in SERVICES}
    cases = (screen_cases("open", "home", 1, seed=seed)[0] for seed in itertools.count(500))

    def question() -> str:
        case = next(cases)  # its media are in no cache
        response = ask.post(case.image, case.audio, case.words)
        return "OK" if response.status_code == 200 else response.text

    def describe(name: str) -> str:
        service = SERVICES[name]
        try:
            service.stub(channel).Describe(service.describe(), metadata=metadata[name], timeout=NET_SECONDS)
        except grpc.RpcError as error:
            return f"{name}: {error.code()} {error.details()}"
        return "OK"

    def all_are_new() -> bool:
        running = {name: [process.pid for process in mesh.replicas(name)] for name in SERVICES}
        return all(pids and before[name] not in pids for name, pids in running.items())

    with grpc.insecure_channel(mesh.serve_address) as channel, ExitStack() as stack:
        asked = [stack.enter_context(asking(question))]
        # At the services' own door, where nobody asks again.
        asked += [stack.enter_context(asking(partial(describe, name))) for name in SERVICES]
        redeploy(mesh, OTHER_SETTINGS)
        eventually(all_are_new, "every replica is a new one")
    assert [{*answers} for answers in asked] == [{"OK"}] * 4


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle with other weights of its vision part, which see nearly the same."""
    root = tmp_path_factory.mktemp("bundles") / "other"
    shutil.copytree(chosen_bundle(), root, copy_function=os.link)
    weights = root / "vision" / "model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] * 1.001}, weights, {"format": "pt"})
    before = Bundle.open(root)
    return write_manifest(root, before.name, before.architecture)


def test_new_weights_of_a_modality_fail_no_request(mesh: Mesh, ask: Asker, other_weights: Bundle) -> None:
    """Two replicas fit: the new one starts before the old one ends. Where they do not, requests in between are refused
    with a time to try again."""
    pairs = (screen_cases("open", "home", 2, seed=seed) for seed in itertools.count(700))

    def question() -> str:
        one, other = next(pairs)
        response = ask.post(one.image, other.image, one.words)
        if response.status_code == 200:
            return "OK"
        return f"{response.json()['error']['code']}, retry-after {'retry-after' in response.headers}"

    def serves(revision: str) -> bool:
        lines = ask.http.get("/metrics").text.splitlines()
        (described,) = [line for line in lines if "autoglm_build_info{" in line and 'application="vision"' in line]
        return f'revision="{revision}"' in described and len(mesh.replicas("vision")) == 1

    old, new = Bundle.open(chosen_bundle()).revision("vision"), other_weights.revision("vision")
    changed = {"args": {**OTHER_SETTINGS["vision"]["args"], "bundle": str(other_weights.root)}}
    redeploy(mesh, OTHER_SETTINGS)
    eventually(lambda: serves(old), "the old weights run")
    with asking(question) as while_both_run:
        redeploy(mesh, {**OTHER_SETTINGS, "vision": changed})
        eventually(lambda: serves(new), "the new weights run alone")
    with asking(question) as while_none_runs:
        redeploy(mesh, {**OTHER_SETTINGS, "vision": {**OTHER_SETTINGS["vision"], **NO_ROOM}})
        eventually(lambda: serves(old), "the old weights run again")
    redeploy(mesh, OTHER_SETTINGS)
    eventually(mesh.is_whole, "every service has a replica")
    assert {*while_both_run} == {"OK"}
    assert {*while_none_runs} <= {"OK", "modality_unavailable, retry-after True"}
    assert question() == "OK"
    assert {key: embedding for key, embedding in stored_revisions(mesh) if key != embedding} == {}
    assert {old, new} <= {key for key, _ in stored_revisions(mesh)}


def test_of_two_replicas_one_always_answers(mesh: Mesh, ask: Asker) -> None:
    """Even where there is no room for a third."""
    cases = (screen_cases("open", "home", 1, seed=seed)[0] for seed in itertools.count(900))

    def question() -> str:
        case = next(cases)
        response = ask.post(case.image, case.words)
        return "OK" if response.status_code == 200 else response.text

    def changed(settings: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        return {
            "vision": {"args": settings, "deployments": [{"name": "Vision", "max_surge_percent": 0, "num_replicas": 2}]}
        }

    redeploy(mesh, changed({}))
    eventually(lambda: len(mesh.replicas("vision")) == 2 and mesh.is_whole(), "vision has two replicas")
    before = {process.pid for process in mesh.replicas("vision")}

    def are_new() -> bool:
        running = {process.pid for process in mesh.replicas("vision")}
        return len(running) == 2 and running.isdisjoint(before)

    with asking(question) as answers:
        redeploy(mesh, changed({"max_queued_requests": 66}))
        eventually(are_new, "both replicas are new ones")
    redeploy(mesh, {})
    eventually(lambda: len(mesh.replicas("vision")) == 1 and mesh.is_whole(), "vision has one replica")
    assert {*answers} == {"OK"}


def stored_revisions(mesh: Mesh) -> Iterator[tuple[str, str]]:
    """Yield the revision in the key of each picture's embedding in Redis, and the one that made it."""
    with redis.Redis.from_url(mesh.redis_url) as store:
        for key in store.scan_iter(f"{PREFIX}:*:image:*"):
            entry = store.get(key)
            assert isinstance(entry, bytes)
            yield key.decode().split(":")[3], Embedding.FromString(entry[MAC_BYTES:]).encoder_revision
