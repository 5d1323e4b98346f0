"""Where Redis is: `redis_url` read into a client of one server, of the master that Sentinel names, or of a cluster.

    redis://[user:password@]host[:6379][/database]
    redis+sentinel://[user:password@]host[:26379],host…/service[/database]
    redis+cluster://[user:password@]host[:6379],host…
    unix://[user:password@]path[?db=database]

`rediss` instead of `redis` enables TLS. Behind a `?` follow the options of redis-py's connections, such as
`ssl_ca_certs`, and for Sentinel `sentinel_username` and `sentinel_password`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

FORMS = (
    "redis://localhost:6379/0, redis+sentinel://host:26379,host:26379/service or redis+cluster://host:6379,host:6379"
)
PORTS = {"sentinel": 26379, "cluster": 6379}
CLUSTER_RETRIES = 1  # after a node is gone: by then the client has asked the others who has its slots

# What a command raises that is not carried out. That no node of a cluster answers is no RedisError.
FAILURES = (RedisError, RedisClusterException, OSError)

RedisClient = Redis | RedisCluster


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed `redis_url`: `options` of a connection to a server, `sentinel_options` of one to Sentinel."""

    mode: Literal["standalone", "sentinel", "cluster"]
    nodes: tuple[tuple[str, int], ...]
    options: Mapping[str, Any]
    url: str = ""
    service: str = ""
    sentinel_options: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        """Return what may be shown, without user and password."""
        if self.mode == "standalone":
            host, port = self.options.get("host", "localhost"), self.options.get("port", 6379)
            return str(self.options.get("path") or f"{host}:{port}")
        nodes = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        return f"cluster {nodes}" if self.mode == "cluster" else f"{self.service} of Sentinel {nodes}"

    def client(self, timeout: float, max_connections: int) -> RedisClient:
        """Return a client, which connects at its first command and tries nothing twice.

        `timeout`, in seconds, is for one command. Each Sentinel gets a share of it, as all but one may be silent.
        """
        times = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        common: dict[str, Any] = {**times, "max_connections": max_connections, "retry": Retry(NoBackoff(), 0)}
        if self.mode == "standalone":
            return Redis.from_url(self.url, **common)
        if self.mode == "cluster":
            nodes = [ClusterNode(*node) for node in self.nodes]
            retry = Retry(NoBackoff(), CLUSTER_RETRIES)
            return RedisCluster(startup_nodes=nodes, **{**common, "retry": retry, **self.options})
        share = timeout / (len(self.nodes) + 1)
        asked = {**(self.sentinel_options or {}), "socket_timeout": share, "socket_connect_timeout": share}
        asked["retry"] = common["retry"]
        sentinel = Sentinel(self.nodes, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
        client: Redis = sentinel.master_for(self.service, **{**common, **self.options})
        return client


async def close(client: RedisClient) -> None:
    """Close the connections of a client, those to Sentinel too."""
    await client.aclose()
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, SentinelConnectionPool):
        await pool.sentinel_manager.aclose()


def parse(url: str) -> RedisAddress:
    """Return what `url` says; raises ValueError with a message that contains no part of it."""
    try:
        return _parse(url)
    except ValueError as error:
        detail = f"{error}; " if isinstance(error, WrongAddress) else ""
        raise ValueError(f"{detail}give an address like {FORMS}") from None


class WrongAddress(ValueError):
    """A Redis URL is wrong in a way that the message tells without quoting it."""


def _parse(url: str) -> RedisAddress:
    parts = urlsplit(url)
    scheme, _, mode = parts.scheme.partition("+")
    if not mode:
        _database(parts.path.strip("/") if scheme in ("redis", "rediss") else "")
        return RedisAddress("standalone", (), _options(url), url)
    if scheme not in ("redis", "rediss") or mode not in ("sentinel", "cluster"):
        raise WrongAddress("the scheme is unknown")
    user, at, hosts = parts.netloc.rpartition("@")
    nodes = tuple(_node(host, PORTS[mode]) for host in hosts.split(","))
    service, _, database = parts.path.strip("/").partition("/")
    if mode == "cluster" and service:
        raise WrongAddress("a cluster has no databases")
    if mode == "sentinel" and not service:
        raise WrongAddress("the name of the service that Sentinel watches is missing")
    query = dict(parse_qsl(parts.query))
    sentinel_user = {name: query.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    options = _options(f"{scheme}://{user}{at}localhost/{_database(database)}?{urlencode(query)}", tls_flag=True)
    if mode == "cluster":
        return RedisAddress("cluster", nodes, options)
    tls = {key: value for key, value in options.items() if key.startswith("ssl")}
    return RedisAddress("sentinel", nodes, options, service=service, sentinel_options={**tls, **sentinel_user})


def _node(text: str, port: int) -> tuple[str, int]:
    """Return host and port; the host of an IPv6 address is in brackets."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise WrongAddress("a host is missing")
    return parts.hostname, parts.port or port


def _database(text: str) -> str:
    """Return `text`, which redis-py would take for 0 if it were no number."""
    if text and not text.isdecimal():
        raise WrongAddress("a database is a number")
    return text


def _options(url: str, tls_flag: bool = False) -> dict[str, Any]:
    """Return the options of a connection in a plain URL. Raises ValueError, also for one that there is not.

    With `tls_flag`, as clients of several nodes take them: without host and port, and TLS is one of them.
    """
    options: dict[str, Any] = dict(parse_url(url))
    kind: type[AbstractConnection] = options.pop("connection_class", Connection)
    try:
        kind(**{key: value for key, value in options.items() if key != "max_connections"})  # which is the pool's
    except TypeError:
        raise WrongAddress("redis-py has no such option as is after the ?") from None
    if tls_flag:
        for name in ("host", "port"):
            options.pop(name, None)
        options |= {"ssl": True} if issubclass(kind, SSLConnection) else {}
    return options
