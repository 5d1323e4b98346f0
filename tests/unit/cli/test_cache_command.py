"""`autoglm cache`: what it shows and deletes in Redis, alone and in a cluster, and what it says when it cannot."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from autoglm.cli.isolation import free_ports
from autoglm.cli.main import app
from autoglm.common.modalities import BY_KIND, MediaKind
from autoglm.common.tensors import seal
from autoglm.gateway.media.cache import Key, RedisTier
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.redis_store import RedisStore
from autoglm.gateway.settings import Settings
from autoglm.v1.embedding_pb2 import ELEMENT_TYPE_BFLOAT16, Embedding

from ..gateway.redis_servers import Watched, cluster_of_three, running_server, with_sentinel


@pytest.fixture(scope="module", params=["standalone", "cluster"])
def servers(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cluster":
        with cluster_of_three() as cluster:
            yield cluster.url
    else:
        (port,) = free_ports(1)
        with running_server(port):
            yield f"redis://127.0.0.1:{port}/0"


def cache(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["cache", *arguments])


def shown(url: str) -> Mapping[str, Any]:
    done = cache("stats", "--redis-url", url, "--json")
    assert done.exit_code == 0, done.output
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


def fill(url: str, **counts: int) -> int:
    """Store so many embeddings of each kind, look for each and for one more, and return the bytes of an entry."""

    async def work() -> int:
        store = RedisStore(Settings(redis_url=SecretStr(url), redis_timeout=10), GatewayMetrics())
        tier, size = RedisTier(store, 60, "secret"), 0
        for kind, count in counts.items():
            for number in range(count + 1):
                key = key_of(kind, number)  # type: ignore[arg-type]
                if number < count:
                    await tier.put(key, embedding_of(key))
                    size = int(await store.client.strlen(str(key)))
                tier.looked_up(key, await tier.get(key) is not None)
        await store.client.set("somebody else's:image:", "x")
        await tier.report()
        await store.close()
        return size

    return asyncio.run(work())


def key_of(kind: MediaKind, number: int) -> Key:
    return Key("tenant", BY_KIND[kind].number, "r1", ELEMENT_TYPE_BFLOAT16, number.to_bytes(32, "big"))


def embedding_of(key: Key) -> Embedding:
    tokens = seal(bytes(24), (12, 1), key.element_type)
    return Embedding(modality=key.modality, encoder_revision=key.revision, tokens=tokens, media_sha256=key.sha256)


def test_what_is_there_is_counted_and_cleared_by_modality(servers: str) -> None:
    assert cache("clear", "--yes", "--redis-url", servers).exit_code == 0
    size = fill(servers, image=600, audio=3)  # more than one batch
    assert shown(servers) == {
        "image": {"entries": 600, "bytes": 600 * size, "queries": 601, "hits": 600},
        "audio": {"entries": 3, "bytes": 3 * size, "queries": 4, "hits": 3},
    }
    table = cache("stats", "--redis-url", servers).stdout
    assert "99.8%" in table
    assert "75.0%" in table
    done = cache("clear", "image", "--yes", "--redis-url", servers)
    assert done.stdout.startswith("Deleted 600 embeddings")
    nothing = {"entries": 0, "bytes": 0, "queries": 0, "hits": 0}
    assert shown(servers) == {
        "image": nothing,
        "audio": {"entries": 3, "bytes": 3 * size, "queries": 4, "hits": 3},
    }
    assert cache("clear", "-y", "--redis-url", servers).stdout.startswith("Deleted 3 embeddings")
    assert shown(servers) == {"image": nothing, "audio": nothing}
    assert "–" in cache("stats", "--redis-url", servers).stdout


def test_nothing_is_deleted_without_a_yes(servers: str) -> None:
    cache("clear", "--yes", "--redis-url", servers)
    fill(servers, audio=2)
    for answer in ("n\n", "\n", ""):
        done = CliRunner().invoke(app, ["cache", "clear", "--redis-url", servers], input=answer)
        assert done.exit_code == 1
        assert "image and audio" in done.stderr
    assert shown(servers)["audio"]["entries"] == 2
    assert CliRunner().invoke(app, ["cache", "clear", "--redis-url", servers], input="y\n").exit_code == 0
    assert shown(servers)["audio"]["entries"] == 0


def test_other_keys_stay(servers: str) -> None:
    fill(servers, image=1)
    cache("clear", "--yes", "--redis-url", servers)

    async def there() -> bool:
        store = RedisStore(Settings(redis_url=SecretStr(servers), redis_timeout=10), GatewayMetrics())
        found = await store.client.exists("somebody else's:image:")
        await store.close()
        return bool(found)

    assert asyncio.run(there())


def test_the_address_comes_from_the_gateways_variable(servers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_REDIS_URL", servers)
    assert cache("stats").exit_code == 0


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with with_sentinel("s3cret") as watched:
        yield watched


def test_behind_sentinel(watched: Watched) -> None:
    fill(watched.url, image=2)
    assert shown(watched.url)["image"]["entries"] == 2
    assert cache("clear", "--yes", "--redis-url", watched.url).stdout.startswith("Deleted 2 embeddings")
    wrong = cache("stats", "--redis-url", f"redis://:hidden@127.0.0.1:{watched.master.port}/0")
    assert wrong.exit_code == 1
    assert "refuses the user or password" in wrong.stderr
    assert "hidden" not in wrong.stderr


@pytest.mark.parametrize("command", [["stats"], ["clear", "--yes"]])
@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "which Redis? Set --redis-url or AUTOGLM_REDIS_URL"),
        ("localhost", "--redis-url or AUTOGLM_REDIS_URL: give an address like redis://localhost:6379/0"),
        ("redis://:hidden@127.0.0.1:1/0", "Redis at 127.0.0.1:1 does not do it (ConnectionError): start it or correct"),
        ("redis+cluster://:hidden@127.0.0.1:1", "Redis at cluster 127.0.0.1:1 does not do it"),
        ("redis+sentinel://:hidden@127.0.0.1:1/s", "Redis at s of Sentinel 127.0.0.1:1 does not do it"),
    ],
)
def test_what_to_do_without_redis(command: list[str], url: str, told: str) -> None:
    done = cache(*command, *(["--redis-url", url] if url else []))
    assert done.exit_code == 1
    assert done.stderr.startswith(f"autoglm cache {command[0]}: {told}")
    assert done.stderr.count("\n") == 1
    assert "hidden" not in done.stderr


def test_a_modality_that_there_is_not() -> None:
    done = cache("clear", "video", "--yes", "--redis-url", "redis://127.0.0.1:1/0")
    assert done.exit_code == 1
    assert "video is not a modality with an encoder; choose from image, audio" in done.stderr
