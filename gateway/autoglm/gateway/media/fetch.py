"""Images and recordings by URL: from where a request may have the gateway fetch them, and how.

Nothing is fetched unless the settings name its host. Addresses are checked where names become addresses, and the
connection goes to what was checked, so that an answer which changes meanwhile leads nowhere. A redirect starts all
over. What clients are told holds nothing of a URL, and nothing is logged.
"""

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import aiohttp
from aiohttp.abc import ResolveResult
from yarl import URL

from autoglm.common.deadlines import Deadline
from autoglm.common.errors import DeadlineExceeded, InvalidRequest, RequestTooLarge
from autoglm.gateway.admission.byte_budget import Memory
from autoglm.gateway.conversation import Call, MediaPart
from autoglm.gateway.media.verify import Limits, Media, verified
from autoglm.gateway.metrics import Metrics
from autoglm.gateway.settings import HOST, Settings
from autoglm.gateway.tasks import together

MAX_REDIRECTS = 3
MAX_CONNECTIONS = 100
REDIRECTS = (301, 302, 303, 307, 308)
INSTEAD = "send the bytes as data:<type>;base64,<data>"
# RFC 6052: how a network without IPv4 writes the addresses of IPv4.
NAT64 = IPv6Network("64:ff9b::/96")
GLOBAL_UNICAST = IPv6Network("2000::/3")

# The first that fits says what is wrong with a host.
_FAULTS: Sequence[tuple[type[Exception], str]] = (
    (aiohttp.ClientConnectorDNSError, "has no address that this server may connect to"),
    (aiohttp.ClientSSLError, "has no certificate that this server trusts"),
    (aiohttp.ClientConnectorError, "cannot be connected to"),
    (Exception, "does not answer as HTTP says, or breaks off"),
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
            raise InvalidRequest(f"this server takes only data: URLs; {INSTEAD}")
        if url.scheme != "https":
            raise InvalidRequest(f"{what} is no https: URL; {INSTEAD}")
        if url.user is not None or url.password is not None:
            raise InvalidRequest(f"{what} holds a user name or a password; leave it out")
        host, port = (url.raw_host or "").lower(), url.port
        if not re.fullmatch(HOST, host) or not (self._names(host, port) or ("*", port) in self._entries):
            raise InvalidRequest(
                f"{what} names a host or a port that this server does not fetch from; {INSTEAD}, or have the server's"
                " operator add it to allowed_media_domains"
            )

    def connectable(self, host: str, port: int, address: str) -> bool:
        """Return whether `address`, which `host` says is its own, may be connected to."""
        ip = _translated(ip_address(address))
        return _public(ip) or (self._names(host.lower(), port) and any(ip in network for network in self._private))

    def _names(self, host: str, port: int | None) -> bool:
        """Return whether an entry names `host`, itself or by a domain that it is in."""
        labels = host.split(".")
        domains = {f"*.{'.'.join(labels[i:])}" for i in range(1, len(labels))}
        return any((name, port) in self._entries for name in {host, *domains})


def _translated(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(ip, IPv4Address):
        return ip
    return IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip.ipv4_mapped or ip


def _public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv6Address) and (ip not in GLOBAL_UNICAST or ip.sixtofour):
        return False
    return ip.is_global and not ip.is_multicast


class _Resolver(aiohttp.ThreadedResolver):
    """The system's resolver, behind the policy."""

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
class _Room:
    """Bytes that the files of one request may still have, of `whole`."""

    whole: int
    left: int
    memory: Memory
    call: Call

    def take(self, count: int) -> None:
        self.memory.take(self.call, count)
        self.left -= count
        if self.left < 0:
            raise RequestTooLarge(f"the files that the request names are larger than {self.whole} bytes together")


class Fetcher:
    """Makes media of what a request holds and names. Connections are kept for the next file of the same host."""

    def __init__(self, settings: Settings, metrics: Metrics, memory: Memory) -> None:
        self._policy, self._metrics, self._memory = Policy(settings), metrics, memory
        self._limits = Limits(settings.max_media_bytes, settings.max_image_pixels)
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

    async def media(self, parts: Sequence[MediaPart], call: Call) -> list[Media]:
        """Return `parts` verified, in order, after all that have a URL were fetched at the same time.

        Raises the MeshError of one at fault, which names its field: InvalidRequest when the policy or the host refuses,
        RequestTooLarge, UnsupportedMedia, RateLimited (memory is full), or DeadlineExceeded.
        """
        room = _Room(self._max_bytes, self._max_bytes, self._memory, call)
        await together([self._fetch(part, room, call.deadline) for part in parts if part.url])
        return await verified(parts, self._limits)

    async def _fetch(self, part: MediaPart, room: _Room, deadline: Deadline) -> None:
        started, left = time.monotonic(), deadline.remaining()
        limit = self._timeout if left is None else min(left, self._timeout)
        try:
            async with asyncio.timeout(limit):
                part.source = await self._follow(part.url, room)
        except (InvalidRequest, RequestTooLarge) as error:
            raise type(error)(f"{part.param}: {error.message}", param=part.param) from None
        except TimeoutError:
            if limit < self._timeout:
                raise DeadlineExceeded("the deadline passed while media was fetched; allow more time") from None
            message = f"{part.param}: the file did not come within {self._timeout:g} seconds; {INSTEAD}"
            raise InvalidRequest(message, param=part.param) from None
        self._metrics.media_fetch.observe(time.monotonic() - started)

    async def _follow(self, text: str, room: _Room) -> bytes:
        """Return the file at a URL, or where that redirects to."""
        url, what = _parsed(text), "the URL"
        try:
            for _ in range(1 + MAX_REDIRECTS):
                self._policy.check(url, what)
                async with self._session.get(url, allow_redirects=False) as response:
                    if response.status not in REDIRECTS:
                        return await self._read(response, room)
                    url = url.join(_parsed(response.headers.get("location", "")))
                what = "what the URL redirects to"
        except (aiohttp.ClientError, OSError) as error:
            fault = next(text for kind, text in _FAULTS if isinstance(error, kind))
            raise InvalidRequest(f"the URL's host {fault}") from None
        raise InvalidRequest(f"the URL redirects more than {MAX_REDIRECTS} times")

    async def _read(self, response: aiohttp.ClientResponse, room: _Room) -> bytes:
        if response.status != 200:
            raise InvalidRequest(f"the URL's host answers {response.status}, which is not the file")
        if (response.headers.get("content-encoding") or "identity").lower() != "identity":
            raise InvalidRequest("the URL's host compresses the file, which it was asked not to do")
        pieces, length = [], 0
        self._check_size(response.content_length or 0)
        async for piece in response.content.iter_any():
            length += len(piece)
            self._check_size(length)
            room.take(len(piece))
            pieces.append(piece)
        return b"".join(pieces)

    def _check_size(self, length: int) -> None:
        if length > self._limits.max_bytes:
            raise RequestTooLarge(f"the file is larger than {self._limits.max_bytes} bytes")


def _parsed(text: str) -> URL:
    """Return `text` as a URL, unchanged where it is ASCII: a signed one holds only as it was written."""
    try:
        return URL(text, encoded=text.isascii())
    except ValueError:
        raise InvalidRequest("the URL cannot be read") from None
