"""Servers that media is fetched from, and the names that lead to them."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .samples import png

Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def http(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """Return a response whose end is the end of the connection."""
    fields = {"connection": "close", **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def image(url: str) -> dict[str, Any]:
    """Return an image by its URL as OpenAI's clients send it."""
    return {"type": "image_url", "image_url": {"url": url}}


def audio(url: str) -> dict[str, Any]:
    """Return a recording by its URL as vLLM's clients send it."""
    return {"type": "audio_url", "audio_url": {"url": url}}


class Origin:
    """A server that speaks HTTPS, or whatever else a test has it say; it remembers what it was asked."""

    def __init__(self) -> None:
        self.port = 0
        self.forget()

    def forget(self) -> None:
        """Be as at the start."""
        self.replies: dict[str, bytes | Reply] = {}
        self.heads: list[str] = []
        self.entered, self.left = asyncio.Event(), asyncio.Event()

    @property
    def paths(self) -> list[str]:
        """The paths that were asked for."""
        return [head.split(" ")[1] for head in self.heads]

    async def start(self, address: str, port: int, context: ssl.SSLContext) -> asyncio.Server:
        """Listen; port 0 takes a free one."""
        server = await asyncio.start_server(self._serve, address, port, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            self.entered.set()
            reply = self.replies[head.split(" ")[1].partition("?")[0]]
            if isinstance(reply, bytes):
                writer.write(reply)
                await writer.drain()
            else:
                await reply(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.left.set()


class Names:
    """The system's resolver, with answers of a test's own: each name's next, and its last for good."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: str | None, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Stand for socket.getaddrinfo."""
        if host is None or not host.endswith(".test"):
            return list(self._real(host, port, *args, **kwargs))
        self.asked.append(host)
        answers = self.answers.get(host, [[]])
        found = [_entry(address, port) for address in (answers.pop(0) if len(answers) > 1 else answers[0])]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found


@dataclass
class World:
    """A server at 127.0.0.1 that may be fetched from, and on the same port at 127.0.0.2 one that may not."""

    media: Origin
    inner: Origin
    names: Names

    @property
    def url(self) -> str:
        return f"https://media.test:{self.media.port}"

    @property
    def settings(self) -> dict[str, Any]:
        allowed = f"media.test:{self.media.port},*.cdn.test:{self.media.port},*"
        return {"allowed_media_domains": allowed, "allowed_private_networks": "127.0.0.1/32"}

    def forget(self) -> None:
        """Be as at the start."""
        self.names.asked.clear()
        self.names.answers = {
            "media.test": [["127.0.0.1"]],
            "a.cdn.test": [["127.0.0.1"]],
            "b.cdn.test": [["127.0.0.2"]],
        }
        for origin in (self.media, self.inner):
            origin.forget()
            origin.replies = {"/a.png": http(png())}


def _entry(address: str, port: int) -> tuple[Any, ...]:
    if ":" in address:
        return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0))
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
