"""Which pages in a browser may use a server that asks for no key.

A browser sends requests of any page to any address that it can reach, this machine's and its network's among them.
CORS only keeps the page from reading the answer. A page cannot know a key, so with keys nothing here is needed.
"""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from autoglm.common.errors import PermissionDenied, UnsupportedMedia
from autoglm.gateway.settings import Settings

ALLOW = "set AUTOGLM_CORS_ALLOW_ORIGINS to allow it, or AUTOGLM_API_KEYS to ask for a key instead"
_DEFAULT_PORTS = {"http": 80, "https": 443}
# JSON, and the forms of transcriptions. Browsers send other types to other origins without asking first.
_READ = re.compile(r"application/(?:[\w.+-]+\+)?json|multipart/form-data")
# No one can register such a name to lead browsers here: it has one label, or one of the reserved last ones.
_UNREGISTRABLE = re.compile(r"[^.]+|.+\.(?:localhost|internal)")


class PageOrigins:
    """Plain ASGI middleware: refuses requests of pages of other origins, by their Origin and their Host."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._origins, self._any = frozenset(settings.origins), "*" in settings.origins
        self._names = {urlsplit(origin).hostname for origin in self._origins}
        self._local = settings.is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; raises PermissionDenied or UnsupportedMedia."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._any:
            self._check_host(host)
            self._check_origin(origin, host)
        if origin is not None and scope["method"] == "POST":
            _check_type(headers.get("content-type", ""))
        await self._app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        """Refuse names that a page has had bound to this machine's address (DNS rebinding).

        Only where the server listens on loopback alone: elsewhere it cannot know the names that lead to it.
        """
        name, _ = _address(f"http://{host}")
        if not self._local or not name or _is_address(name):
            return
        if not _UNREGISTRABLE.fullmatch(name) and name not in self._names:
            raise PermissionDenied(f"host: {name[:100]!r} is not a name of this machine; {ALLOW}", param="host")

    def _check_origin(self, origin: str | None, host: str) -> None:
        if origin is None or origin in self._origins:
            return
        # Behind a proxy the page's scheme is not ours, so the ports are compared as the page's scheme has them.
        scheme = origin.partition("://")[0].lower()
        if scheme not in _DEFAULT_PORTS or _address(origin) != _address(f"{scheme}://{host}"):
            raise PermissionDenied(
                f"origin: pages of {origin[:100]!r} may not use this server; {ALLOW}", param="origin"
            )


def _check_type(content_type: str) -> None:
    given = content_type.partition(";")[0].strip().lower()
    if not _READ.fullmatch(given):
        raise UnsupportedMedia(
            f"content-type: a page must send application/json, not {given[:100]!r}", param="content-type"
        )


def _address(url: str) -> tuple[str, int | None]:
    """Return the host and the port of a URL; no host when it is none."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "").rstrip("."), parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return "", None


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
