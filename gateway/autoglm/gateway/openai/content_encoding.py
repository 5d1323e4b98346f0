"""Decompresses bodies that a client has compressed, in steps, so that a small one cannot become a huge one."""

import zlib
from collections.abc import Iterable, Iterator, Sequence

from autoglm.common.errors import InvalidRequest, RequestTooLarge, UnsupportedMedia

ACCEPTED = "gzip, deflate, identity"
MAX_LAYERS = 2
STEP = 256 * 1024  # bytes that are decompressed at once, in about a millisecond

_PARAM = "content-encoding"
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's `wbits` of the three formats
_CODINGS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


class UnsupportedEncoding(UnsupportedMedia):
    """The body is compressed in a way that this server does not read; the response lists what it reads."""


class ContentDecoder:
    """Undoes the codings of one body. Neither the body nor anything in between may exceed `limit` bytes."""

    def __init__(self, headers: Iterable[str], limit: int) -> None:
        """Take the values of the header Content-Encoding; raises UnsupportedEncoding."""
        names = [name.strip().lower() for value in headers for name in value.split(",")]
        codings = [name for name in names if name not in ("", "identity")]
        unknown = [name for name in codings if name not in _CODINGS]
        if unknown or len(codings) > MAX_LAYERS:
            wrong = f"{unknown[0][:40]!r}" if unknown else f"more than {MAX_LAYERS} codings"
            raise UnsupportedEncoding(f"{_PARAM}: {wrong} cannot be read; use one of {ACCEPTED}", param=_PARAM)
        self._layers = [_Layer(_CODINGS[name], limit) for name in reversed(codings)]

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes of the body stand for; raises InvalidRequest or RequestTooLarge."""
        return _through(self._layers, data)

    def finish(self) -> None:
        """Check that the body is complete; raises InvalidRequest."""
        for layer in self._layers:
            layer.finish()


class _Layer:
    """One coding of a body."""

    def __init__(self, coding: str, limit: int) -> None:
        self._coding, self._limit, self._produced = coding, limit, 0
        self._inflate: zlib._Decompress | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` stands for, a step at a time."""
        more = bool(data)
        while more:
            inflate = self._inflate = self._inflate or zlib.decompressobj(self._format(data))
            if inflate.eof:
                raise self._broken("something follows its end")
            try:
                found = inflate.decompress(data, STEP)
            except zlib.error as error:
                raise self._broken(str(error)) from None
            self._produced += len(found)
            if self._produced > self._limit:
                raise RequestTooLarge(f"the body is larger than {self._limit} bytes when it is decompressed")
            yield found
            data = inflate.unconsumed_tail or inflate.unused_data
            more = bool(data) or (len(found) == STEP and not inflate.eof)  # zlib itself may hold more

    def finish(self) -> None:
        """Check that the end has come; raises InvalidRequest."""
        if self._inflate is None or not self._inflate.eof:
            raise self._broken("it ends too early")

    def _format(self, start: bytes) -> int:
        if self._coding == "gzip":
            return _GZIP
        return _ZLIB if start[0] & 0x0F == zlib.DEFLATED else _RAW  # many clients leave zlib's header out

    def _broken(self, why: str) -> InvalidRequest:
        return InvalidRequest(f"the body is not valid {self._coding}: {why}", param=_PARAM)


def _through(layers: Sequence[_Layer], data: bytes) -> Iterator[bytes]:
    if not layers:
        yield data
        return
    for found in layers[0].feed(data):
        yield from _through(layers[1:], found)
