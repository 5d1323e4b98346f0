"""Gateways that share a Redis behind Sentinel, or a cluster: what they share, and a master that dies."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme

from autoglm.cli.checks import check_redis
from autoglm.cli.processes import StartError
from autoglm.gateway.admission.windows import RedisWindows
from autoglm.gateway.context import Tenant
from autoglm.gateway.redis_address import close, parse

from ...waiting import eventually_async
from .conftest import Client, FakeMesh, Serve
from .redis_servers import SERVICE, Cluster, Server, Watched, cluster_of_three, with_sentinel
from .samples import image_part, png
from .test_gateway_cache import ask, embedding_of, key_of
from .test_gateway_cache_trust import tier_of
from .test_gateway_circuit_breaker import silent_server
from .test_gateway_limits import ask as ask_limited
from .test_gateway_limits import limited

__all__ = ["limited"]

BACKOFF = 0.2  # seconds; the default of 5 would only make the tests longer


@pytest.fixture(scope="module")
def clustered() -> Iterator[Cluster]:
    with cluster_of_three() as cluster:
        yield cluster


@pytest.fixture
def cluster(clustered: Cluster) -> Cluster:
    """A cluster that is empty."""
    for node in clustered.primaries:
        with node.client() as client:
            client.flushall()
    return clustered


@pytest.fixture
def watched() -> Iterator[Watched]:
    with with_sentinel(password="s3cret") as watched:
        yield watched


async def two_gateways(serve: Serve, url: str, **settings: Any) -> tuple[Client, Client]:
    one, two = [await serve(redis_url=url, cache_bytes=0, redis_backoff=BACKOFF, **settings) for _ in range(2)]
    return one, two


async def comes_from_redis(client: Client, part: Any) -> None:
    """Wait until a picture that a gateway was asked about is found by `client` in Redis; every request is answered."""

    async def found() -> bool:
        return await ask(client, part) == ["redis"]

    await eventually_async(found, "the picture comes from Redis")


def shades(count: int) -> list[Any]:
    return [image_part(png(colour=f"#{index:06x}")) for index in range(count)]


def entries(*nodes: Server) -> list[int]:
    """Return how many embeddings each node has."""
    found = []
    for node in nodes:
        with node.client() as client:
            found.append(len(list(client.scan_iter("ag4:*"))))
    return found


async def test_gateways_share_what_a_cluster_keeps_on_all_its_nodes(
    serve: Serve, cluster: Cluster, limited: str
) -> None:
    one, two = await two_gateways(serve, cluster.url)
    pictures = shades(12)
    assert [await ask(one, part) for part in pictures] == [["miss"]] * 12
    for part in pictures:
        await comes_from_redis(two, part)
    assert min(entries(*cluster.primaries)) > 0
    assert (await two.http.get("/health/ready")).json()["dependencies"]["redis"] == "up"


async def test_rate_limits_are_counted_in_a_cluster(serve: Serve, cluster: Cluster, limited: str) -> None:
    one, two = await two_gateways(serve, cluster.url, api_keys_file=limited)
    assert [(await ask_limited(client, "t1")).status_code for client in (one, two, one, two)] == [200, 200, 429, 429]


async def test_every_tenant_is_counted_on_one_node_of_a_cluster(cluster: Cluster) -> None:
    client = parse(cluster.url).client(10.0, 4)
    windows = RedisWindows(client)
    for number in range(20):  # which are spread over the nodes
        tenant = Tenant(id=f"{number:016x}", requests_per_minute=1)
        assert [(await windows.spend(tenant))[0] for _ in range(2)] == [True, False]
        assert [await windows.give_back(tenant) for _ in range(2)] == [True, False]
        assert [(await windows.spend(tenant))[0] for _ in range(2)] == [True, False]
        await windows.clear(tenant)
        assert (await windows.spend(tenant))[0]
    await close(client)


async def test_no_request_fails_while_sentinel_puts_another_in_a_dead_masters_place(
    serve: Serve, mesh: FakeMesh, watched: Watched, limited: str
) -> None:
    one, two = await two_gateways(serve, watched.url)
    red, *others = shades(40)
    assert await ask(one, red) == ["miss"]
    await comes_from_redis(two, red)
    watched.master.kill()
    assert [await ask(one, part) for part in others] == [["miss"]] * len(others)
    blue = image_part(png(colour="blue"))

    async def stored_again() -> bool:
        return await ask(one, blue) == ["redis"]

    await eventually_async(stored_again, "the new master is in use")
    await comes_from_redis(two, blue)
    assert entries(watched.replica)[0] > 0


async def test_no_request_fails_while_a_cluster_replaces_a_dead_node(serve: Serve, mesh: FakeMesh) -> None:
    with cluster_of_three() as cluster:
        one, two = await two_gateways(serve, cluster.url)
        pictures = shades(12)
        for part in pictures:
            await ask(one, part)
            await comes_from_redis(two, part)
        cluster.primaries[0].kill()

        async def all_found() -> bool:
            return {source for part in pictures for source in await ask(two, part)} == {"redis"}

        await eventually_async(all_found, "every picture comes from Redis again")
        assert entries(cluster.replica)[0] > 0


async def test_a_sentinel_that_is_silent_does_not_hide_the_others(watched: Watched) -> None:
    async with silent_server() as (silent, connections):
        first = silent.removeprefix("redis://").removesuffix("/0")
        async with tier_of(watched.url.replace("@", f"@{first},")) as (tier, store, _):
            await tier.put(key_of("a"), embedding_of(key_of("a")))
            assert await tier.get(key_of("a")) is not None
            assert store.up
        assert connections


async def test_a_wrong_password_of_sentinel_is_a_redis_that_is_down(serve: Serve, watched: Watched) -> None:
    url = watched.url.replace("sentinel_password=s3cret", "sentinel_password=wrong")
    client = await serve(redis_url=url, redis_backoff=600)
    assert await ask(client, image_part(png(colour="red"))) == ["miss"]
    assert (await client.http.get("/health/ready")).json()["dependencies"]["redis"] == "down"


@contextlib.asynccontextmanager
async def behind_tls(url: str, folder: Path) -> AsyncIterator[str]:
    """Take TLS connections for the server at `url`, and return its address with the authority's certificate."""
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    host, port = url.removeprefix("redis://").partition("/")[0].split(":")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer), return_exceptions=True)

    async with await asyncio.start_server(relay, "localhost", 0, ssl=context) as server:
        yield f"localhost:{server.sockets[0].getsockname()[1]}/0?ssl_ca_certs={folder / 'ca.pem'}"


async def test_tls_and_a_user_of_redis_acl(valkey: str, tmp_path: Path) -> None:
    with redis.Redis.from_url(valkey) as store:
        store.acl_setuser("gateway", enabled=True, passwords="+pass", keys=["ag*"], commands=["+@all"])
    async with behind_tls(valkey, tmp_path) as address:
        async with tier_of(f"rediss://gateway:pass@{address}") as (tier, _, _):
            await tier.put(key_of("a"), embedding_of(key_of("a")))
            assert await tier.get(key_of("a")) is not None
        async with tier_of(f"rediss://gateway:wrong@{address}") as (tier, refused, _):
            assert await tier.get(key_of("a")) is None
            assert not refused.up
        untrusted = address.partition("?")[0]
        async with tier_of(f"rediss://gateway:pass@{untrusted}") as (tier, refused, _):
            assert await tier.get(key_of("a")) is None
            assert not refused.up
    with redis.Redis.from_url(valkey) as store:
        store.acl_deluser("gateway")


@pytest.mark.parametrize("url", ["redis+cluster://127.0.0.1:1,127.0.0.1:2", "redis+sentinel://127.0.0.1:1/service"])
async def test_no_request_fails_while_no_node_answers(serve: Serve, url: str) -> None:
    client = await serve(redis_url=url, redis_backoff=BACKOFF)
    assert [await ask(client, part) for part in shades(5)] == [["miss"]] * 5
    assert (await client.http.get("/health/ready")).json()["dependencies"]["redis"] == "down"


def test_doctor_says_which_servers_answer(cluster: Cluster, watched: Watched) -> None:
    addresses = [url.rpartition("@")[2].rpartition("//")[2] for url in (cluster.url, watched.url)]
    told = [check_redis(url) for url in (cluster.url, watched.url)]
    assert told[0].endswith(f"at cluster {addresses[0]}")
    assert told[1].endswith(f"at {SERVICE} of Sentinel {addresses[1].partition('/')[0]}")
    watched.sentinel.kill()
    with pytest.raises(StartError, match="no Redis answers") as caught:
        check_redis(watched.url)
    assert "s3cret" not in str(caught.value)
