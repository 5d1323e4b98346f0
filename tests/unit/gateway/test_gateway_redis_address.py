"""The address of Redis: its forms, and that what is wrong with one is told without quoting it."""

from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool

from autoglm.gateway.redis_address import parse
from autoglm.gateway.settings import Settings, wrong_setting


def options(url: str) -> dict[str, Any]:
    """What a client of `url` connects with."""
    client = parse(url).client(1.0, 2)
    return client.connection_kwargs if isinstance(client, RedisCluster) else client.connection_pool.connection_kwargs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h", "h:6379"),
        ("rediss://user:hidden@h:1/2?ssl_cert_reqs=none", "h:1"),
        ("unix:///run/cache.sock?db=1", "/run/cache.sock"),
        ("redis+sentinel://:hidden@h1,h2:5/service", "service of Sentinel h1:26379,h2:5"),
        ("redis+sentinel://h1/service/3?sentinel_password=hidden", "service of Sentinel h1:26379"),
        ("rediss+sentinel://u:hidden@h1/service", "service of Sentinel h1:26379"),
        ("redis+cluster://u:hidden@h1:1,[::1]:2,h3", "cluster h1:1,[::1]:2,h3:6379"),
        ("rediss+cluster://h1:1?ssl_ca_certs=ca.pem", "cluster h1:1"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert str(parse(url)) == shown
    assert Settings.model_validate({"redis_url": url}).redis_url.get_secret_value() == url


@pytest.mark.parametrize("mode", ["redis://{}h/0?{}", "redis+sentinel://{}h/s/0?{}", "redis+cluster://{}h?{}"])
def test_user_password_and_tls_reach_the_connections(mode: str) -> None:
    assert options(mode.format("u:p%40ss@", ""))["username"] == "u"
    assert options(mode.format("u:p%40ss@", ""))["password"] == "p@ss"
    client = parse(mode.replace("redis", "rediss", 1).format("u:p@", "ssl_ca_certs=ca.pem")).client(1.0, 2)
    if isinstance(client, RedisCluster):
        (node,) = client.startup_nodes
        name, given = node.connection_class.__name__, node.connection_kwargs
    else:
        name, given = client.connection_pool.connection_class.__name__, client.connection_pool.connection_kwargs
    assert "SSL" in name
    assert given["ssl_ca_certs"] == "ca.pem"


def test_sentinel_has_a_password_and_tls_of_its_own() -> None:
    url = "rediss+sentinel://u:data@h1,h2/s?sentinel_username=w&sentinel_password=watch&ssl_ca_certs=ca.pem"
    client = parse(url).client(1.0, 2)
    assert isinstance(client, Redis)
    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == ("u", "data")
    for sentinel in pool.sentinel_manager.sentinels:
        given = sentinel.connection_pool.connection_kwargs
        assert (given["username"], given["password"], given["ssl_ca_certs"]) == ("w", "watch", "ca.pem")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost", "give an address like"),
        ("http://hidden", "give an address like"),
        ("redis://h:hidden", "give an address like"),
        ("redis+hidden://h", "the scheme is unknown"),
        ("valkey+cluster://h", "the scheme is unknown"),
        ("redis+sentinel://h1,h2", "the name of the service"),
        ("redis+sentinel://h1,,h2/s", "a host is missing"),
        ("redis+sentinel:///s", "a host is missing"),
        ("redis+sentinel://h/s/hidden", "a database is a number"),
        ("redis://h/hidden", "a database is a number"),
        ("redis+cluster://h/0", "no databases"),
        ("redis+cluster://h:hidden", "give an address like"),
        ("redis://h?hidden=1", "no such option"),
        ("redis+cluster://h?hidden=1", "no such option"),
        ("redis+sentinel://h/s?hidden=1", "no such option"),
        ("redis://h?ssl_ca_certs=ca.pem", "no such option"),
    ],
)
def test_a_wrong_address_is_refused_at_start(url: str, told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"redis_url": url})
    message = wrong_setting(caught.value)
    assert message.startswith("AUTOGLM_REDIS_URL: ")
    assert told in message
    assert "redis+cluster://host:6379" in message
    assert "hidden" not in message
