"""Images and recordings by URL: what a request may have the gateway fetch, and how.

Nothing is fetched unless the settings name its host. Addresses are checked when a name is resolved, and the connection
goes to the checked address, so a DNS answer that changes in between has no effect. A redirect is checked like a new
URL. Error messages contain no part of a URL, and nothing about URLs is logged.
"""

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import aiohttp
from aiohttp.abc import ResolveResult
from yarl import URL

from autoglm.common.deadlines import Deadline
from autoglm.common.errors import Code, DeadlineExceeded, InvalidRequest, RequestTooLarge
from autoglm.common.modalities import MODALITY_NAMES
from autoglm.common.tracing import Span
from autoglm.gateway.admission.byte_budget import ByteBudget
from autoglm.gateway.context import RequestContext
from autoglm.gateway.conversation import MediaPart
from autoglm.gateway.media.verify import MediaLimits, VerifiedMedia, verified
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.settings import HOST, Settings
from autoglm.gateway.tasks import together
from autoglm.v1.modality_pb2 import MODALITY_IMAGE

MAX_REDIRECTS = 3
MAX_CONNECTIONS = 100
REDIRECTS = (301, 302, 303, 307, 308)
INSTEAD = "send the bytes as data:<type>;base64,<data>"
# RFC 6052: IPv4 addresses as they are written in a network without IPv4.
NAT64 = IPv6Network("64:ff9b::/96")
GLOBAL_UNICAST = IPv6Network("2000::/3")

# What is wrong with a host: the first match counts.
_FAULTS: Sequence[tuple[type[Exception], str]] = (
    (aiohttp.ClientConnectorDNSError, "has no address that this server is allowed to connect to"),
    (aiohttp.ClientSSLError, "has no certificate that this server trusts"),
    (aiohttp.ClientConnectorError, "cannot be connected to"),
    (Exception, "does not speak HTTP, or closed the connection"),
)


class Policy:
    """Which URLs may be fetched, and which addresses connected to."""

    def __init__(self, settings: Settings) -> None:
        entries = [entry.partition(":") for entry in settings.media_domains]
        self._entries = {(name, int(port or 443)) for name, _, port in entries}
        self._private = settings.private_networks

    def check(self, url: URL, what: str) -> None:
        """Raise InvalidRequest unless `url`, which the client knows as `what`, may be fetched."""
        if not self._entries:
            raise InvalidRequest(f"this server accepts only data: URLs; {INSTEAD}")
        if url.scheme != "https":
            raise InvalidRequest(f"{what} is not an https: URL; {INSTEAD}")
        if url.user is not None or url.password is not None:
            raise InvalidRequest(f"{what} contains a user name or a password; remove it")
        host, port = (url.raw_host or "").lower(), url.port
        if not re.fullmatch(HOST, host) or not (self._names(host, port) or ("*", port) in self._entries):
            raise InvalidRequest(
                f"{what} names a host or port that this server does not fetch from; {INSTEAD}, or ask the server's"
                " operator to add it to allowed_media_domains"
            )

    def connectable(self, host: str, port: int, address: str) -> bool:
        """Return whether `address`, to which `host` resolves, may be connected to."""
        ip = _translated(ip_address(address))
        return _public(ip) or (self._names(host.lower(), port) and any(ip in network for network in self._private))

    def _names(self, host: str, port: int | None) -> bool:
        """Return whether an entry names `host` or a domain that it is in."""
        labels = host.split(".")
        domains = {f"*.{'.'.join(labels[i:])}" for i in range(1, len(labels))}
        return any((name, port) in self._entries for name in {host, *domains})


def _translated(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address inside an IPv6 address, if there is one."""
    if isinstance(ip, IPv4Address):
        return ip
    return IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip.ipv4_mapped or ip


def _public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv6Address) and (ip not in GLOBAL_UNICAST or ip.sixtofour):
        return False
    return ip.is_global and not ip.is_multicast


class _Resolver(aiohttp.ThreadedResolver):
    """The system's resolver, restricted by the policy."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`; raises OSError unless all of them may be connected to."""
        found = await super().resolve(host, port, family)
        if not all(self._policy.connectable(host, port, each["host"]) for each in found):
            raise PermissionError("an address is not public")
        return found


@dataclass(slots=True)
class _FileBudget:
    """The bytes that the files of one request may still have, of `limit`. They count in the gateway's budget too."""

    limit: int
    left: int
    budget: ByteBudget
    context: RequestContext

    def reserve(self, count: int) -> None:
        self.budget.reserve(self.context, count)
        self.left -= count
        if self.left < 0:
            raise RequestTooLarge(f"the files at the request's URLs are larger than {self.limit} bytes in total")


class Fetcher:
    """Fetches and verifies the media of requests. Connections are reused for the next file of the same host."""

    def __init__(self, settings: Settings, metrics: GatewayMetrics, budget: ByteBudget) -> None:
        self._policy, self._metrics, self._budget = Policy(settings), metrics, budget
        self._limits = MediaLimits(settings.max_media_bytes, settings.max_image_pixels)
        self._max_bytes, self._timeout = settings.max_body_bytes, settings.media_fetch_timeout
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_Resolver(self._policy),
                use_dns_cache=False,
                ssl=ssl.create_default_context() if settings.media_domains else True,  # making one takes 20 ms
                limit=MAX_CONNECTIONS,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"accept-encoding": "identity", "user-agent": "autoglm"},
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),  # `_fetch` has its own, over all redirects
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def media(self, parts: Sequence[MediaPart], context: RequestContext) -> list[VerifiedMedia]:
        """Return `parts` verified, in order, after fetching all those with a URL concurrently.

        Raises a MeshError that names the field at fault: InvalidRequest when the policy or the host refuses,
        RequestTooLarge, UnsupportedMedia, RateLimited when the byte budget is used up, or DeadlineExceeded.
        """
        files = _FileBudget(self._max_bytes, self._max_bytes, self._budget, context)
        urls = [part for part in parts if part.url]
        await together([_traced(part, self._fetch(part, files, context.deadline), context.span) for part in urls])
        return await verified(parts, self._limits)

    async def _fetch(self, part: MediaPart, files: _FileBudget, deadline: Deadline) -> None:
        started, left = time.monotonic(), deadline.remaining()
        limit = self._timeout if left is None else min(left, self._timeout)
        try:
            async with asyncio.timeout(limit):
                part.source = await self._follow(part.url, files)
        except (InvalidRequest, RequestTooLarge) as error:
            refused_image = isinstance(error, InvalidRequest) and part.modality == MODALITY_IMAGE
            code: Code | None = "invalid_image_url" if refused_image else None
            raise type(error)(f"{part.param}: {error.message}", param=part.param, code=code) from None
        except TimeoutError:
            if limit < self._timeout:
                raise DeadlineExceeded("the deadline passed while media was being fetched; allow more time") from None
            message = f"{part.param}: the file did not arrive within {self._timeout:g} seconds; {INSTEAD}"
            raise InvalidRequest(message, param=part.param) from None
        self._metrics.media_fetch.observe(time.monotonic() - started)

    async def _follow(self, text: str, files: _FileBudget) -> bytes:
        """Return the file at a URL, following redirects."""
        url, what = _parsed(text), "the URL"
        try:
            for _ in range(1 + MAX_REDIRECTS):
                self._policy.check(url, what)
                async with self._session.get(url, allow_redirects=False) as response:
                    if response.status not in REDIRECTS:
                        return await self._read(response, files)
                    url = url.join(_parsed(response.headers.get("location", "")))
                what = "what the URL redirects to"
        except (aiohttp.ClientError, OSError) as error:
            fault = next(text for kind, text in _FAULTS if isinstance(error, kind))
            raise InvalidRequest(f"the URL's host {fault}") from None
        raise InvalidRequest(f"the URL redirects more than {MAX_REDIRECTS} times")

    async def _read(self, response: aiohttp.ClientResponse, files: _FileBudget) -> bytes:
        if response.status != 200:
            raise InvalidRequest(f"the URL's host answered with status {response.status}")
        if (response.headers.get("content-encoding") or "identity").lower() != "identity":
            raise InvalidRequest("the URL's host sent the file compressed, although it was asked not to")
        pieces, length = [], 0
        self._check_size(response.content_length or 0)
        async for piece in response.content.iter_any():
            length += len(piece)
            self._check_size(length)
            files.reserve(len(piece))
            pieces.append(piece)
        return b"".join(pieces)

    def _check_size(self, length: int) -> None:
        if length > self._limits.max_bytes:
            raise RequestTooLarge(f"the file is larger than {self._limits.max_bytes} bytes")


async def _traced(part: MediaPart, fetching: Awaitable[None], parent: Span) -> None:
    """Fetch a file within a span of its own, which tells nothing about the URL."""
    with parent.child("fetch", {"autoglm.modality": MODALITY_NAMES[part.modality]}, "client") as span:
        await fetching
        span.set({"autoglm.media.bytes": len(part.source)})


def _parsed(text: str) -> URL:
    """Return `text` as a URL, unchanged if it is ASCII: a signed URL is valid only as written."""
    try:
        url = URL(text, encoded=text.isascii())
        _ = url.port  # which is parsed only when it is asked for
        return url
    except ValueError:
        raise InvalidRequest("the URL is malformed") from None
