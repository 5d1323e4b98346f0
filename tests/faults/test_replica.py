"""The cache dies, hangs or returns wrong data; answers stay the same."""

import itertools
from contextlib import suppress

import httpx
import psutil
import pytest
import redis

from ..asking import Asker, caches
from ..cases import ScreenCase, screen_cases
from ..mesh import Mesh
from ..waiting import NET_SECONDS, eventually

pytestmark = pytest.mark.usefixtures("whole")  # every test leaves the mesh as it found it
_seeds = itertools.count(100)


def fresh() -> ScreenCase:
    """Return a case whose media no cache has seen."""
    return screen_cases("open", "home", 1, seed=next(_seeds))[0]


def kill(process: psutil.Process) -> None:
    process.kill()
    process.wait(NET_SECONDS)


def test_without_redis_answers_still_come(mesh: Mesh, ask: Asker) -> None:
    case = fresh()
    before = ask(case.image, case.words)
    kill(mesh.cache())
    assert ask(case.image, case.words) == before
    response = ask.post(fresh().image)
    assert response.status_code == 200
    assert caches(response.json()) == ["miss"]


def test_with_a_redis_that_hangs_answers_still_come(mesh: Mesh, ask: Asker) -> None:
    server = mesh.cache()
    server.suspend()
    try:
        response = ask.post(fresh().image)
        assert response.status_code == 200
        assert caches(response.json()) == ["miss"]
    finally:
        with suppress(psutil.NoSuchProcess):  # the supervisor replaces it after some seconds
            server.resume()


def test_damaged_entries_of_the_cache_are_not_believed(mesh: Mesh, ask: Asker) -> None:
    case = fresh()
    true = ask.post(case.image, case.words).json()
    assert caches(true) == ["miss"]
    with redis.Redis.from_url(mesh.redis_url) as store:
        eventually(lambda: damage(store) > 0, "the embedding is in redis")
    restart_gateway(mesh, ask)  # so that it remembers nothing itself
    again = ask.post(case.image, case.words).json()
    assert caches(again) == ["miss"]
    assert again["choices"][0]["message"] == true["choices"][0]["message"]


def damage(store: redis.Redis) -> int:
    """Turn over the middle byte of every stored embedding of an image; return how many there are."""
    names = list(store.scan_iter("ag4:*:image:*"))
    for name in names:
        stored = store.get(name)
        assert isinstance(stored, bytes)
        damaged = bytearray(stored)
        damaged[len(damaged) // 2] ^= 0xFF
        store.set(name, bytes(damaged))
    return len(names)


def restart_gateway(mesh: Mesh, ask: Asker) -> None:
    """Kill the gateway and wait until the supervisor has started another."""

    def answers() -> bool:
        try:
            return ask.http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    kill(mesh.gateway())
    eventually(answers, "the gateway is ready again")


def cache(mesh: Mesh) -> psutil.Process:
    """Return the process of the embedding cache."""
    return next(process for process in mesh.descendants() if process.name() in ("valkey-server", "redis-server"))
