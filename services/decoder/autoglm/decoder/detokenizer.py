"""Text from tokens as they come: whole characters only, nothing after a stop string, reasoning apart."""

from dataclasses import dataclass

from tokenizers import Tokenizer

_BROKEN = "\ufffd"


class Detokenizer:
    """Decodes a growing list of token ids; a character whose bytes are incomplete waits for the rest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._read = 0

    def feed(self, token_id: int) -> str:
        """Add a token and return the text that it completes."""
        self._ids.append(token_id)
        text = self._decode(self._start, len(self._ids))
        if text.endswith(_BROKEN) and len(self._ids) - self._read < 4:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """Return what is still kept back, with broken characters replaced."""
        return self._advance(self._decode(self._start, len(self._ids)))

    def _advance(self, text: str) -> str:
        # Tokens before `_start` can no longer change the text: decode from the last complete one.
        new = text[len(self._decode(self._start, self._read)) :]
        self._start, self._read = self._read, len(self._ids)
        return new

    def _decode(self, start: int, stop: int) -> str:
        text: str = self._tokenizer.decode(self._ids[start:stop])
        return text


class StopStrings:
    """Lets text through up to the first stop string, or to its end if it is `included`; text that may begin one
    waits."""

    def __init__(self, stops: tuple[str, ...], included: bool = False) -> None:
        self._stops, self.included = tuple(stop for stop in stops if stop), included
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Return the text that is safe to send, and whether a stop string was reached."""
        self._held += text
        found = [(at, at + len(stop)) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            return self._held[: min(found)[self.included]], True
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return ready, False

    def flush(self) -> str:
        """Return the text that was kept back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held


@dataclass(slots=True)
class Reasoning:
    """Splits the reasoning at the start of an answer from what follows. `marks` open and close it; they are not part of
    the reasoning unless it `keeps_marks`."""

    marks: tuple[str, str]
    keeps_marks: bool = False
    _held: str = ""
    _state: str = "start"

    def feed(self, text: str) -> tuple[str, str]:
        """Return (text, reasoning) that `text` adds."""
        self._held += text
        if self._state == "start":
            opens = self.marks[0]
            if opens.startswith(self._held) and self._held != opens:
                return "", ""
            self._state = "inside" if self._held.startswith(opens) else "after"
            if not self.keeps_marks:
                self._held = self._held.removeprefix(opens)
        if self._state == "after":
            return self._take(len(self._held)), ""
        return self._inside()

    def flush(self) -> tuple[str, str]:
        """Return what is still kept back."""
        rest = self._take(len(self._held))
        return ("", rest) if self._state == "inside" else (rest, "")

    def _inside(self) -> tuple[str, str]:
        closes = self.marks[1]
        at = self._held.find(closes)
        if at < 0:
            return "", self._take(len(self._held) - overlap(self._held, closes))
        reasoning, close = self._take(at), self._take(len(closes))
        self._state = "after"
        return self._take(len(self._held)), reasoning + close if self.keeps_marks else reasoning

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)


def special_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids of the special tokens, which have no text."""
    return frozenset(token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Return the bytes of a byte-level token, or the UTF-8 of an added one."""
    piece = tokenizer.id_to_token(token_id)
    if piece is not None and all(character in _BYTES for character in piece):
        return bytes(_BYTES[character] for character in piece)
    return (piece or "").encode()


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's table: printable bytes are written as themselves, the others as characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()
