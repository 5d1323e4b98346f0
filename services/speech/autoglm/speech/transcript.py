"""What is said in a recording and when, whichever model heard it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

_MARGIN = 0.3  # seconds
_HAN = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class SpokenToken:
    """A token of a model's vocabulary: its text, when it is heard in seconds, and its natural log probability."""

    id: int
    text: str
    start: float
    end: float
    logprob: float


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word, or a Chinese character, and when it is heard in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class SpokenSegment:
    """A stretch of speech: its tokens, at least one, and the probability that nothing is said in it."""

    tokens: Sequence[SpokenToken]
    no_speech_prob: float

    @property
    def text(self) -> str:
        """What is said."""
        return " ".join("".join(token.text for token in self.tokens).split())

    @property
    def start(self) -> float:
        """When the first token is heard, in seconds."""
        return self.tokens[0].start

    @property
    def end(self) -> float:
        """When the last token has been heard, in seconds."""
        return self.tokens[-1].end

    @property
    def avg_logprob(self) -> float:
        """The mean log probability of the tokens."""
        return sum(token.logprob for token in self.tokens) / len(self.tokens)

    def words(self) -> Iterator[SpokenWord]:
        """Yield the words, split at spaces and around Chinese characters."""
        word: SpokenWord | None = None
        for token in self.tokens:
            text = token.text.strip()
            if word and (token.text[:1].isspace() or _HAN.search(word.text + text)):
                yield word
                word = None
            if text:
                word = SpokenWord((word.text if word else "") + text, word.start if word else token.start, token.end)
        if word:
            yield word

    def where(self, audible: Sequence[bool], seconds: float) -> "SpokenSegment | None":
        """Return the segment without tokens that are heard where nothing is `audible`, None if all are.

        Each element of `audible` is so many seconds long. A model may hear a token a little early or late.
        """
        kept = [
            token
            for token in self.tokens
            if any(audible[max(0, int((token.start - _MARGIN) / seconds)) : int((token.end + _MARGIN) / seconds) + 1])
        ]
        return SpokenSegment(kept, self.no_speech_prob) if any(token.text.strip() for token in kept) else None

    def of_piece(self, start: float, seconds: float) -> "SpokenSegment":
        """Return the segment of a piece that starts at `start` and lasts `seconds`, with times in the recording.

        A model may pad what it hears, and so hear a token until after the end.
        """
        moved = [
            replace(token, start=start + min(token.start, seconds), end=start + min(token.end, seconds))
            for token in self.tokens
        ]
        return SpokenSegment(moved, self.no_speech_prob)


def text_of(segments: Sequence[SpokenSegment]) -> str:
    """Return the text of segments in order; a space is between them, except between Chinese characters."""
    texts = [segment.text for segment in segments]
    return "".join(texts[:1]) + "".join(gap(before, after) + after for before, after in pairwise(texts))


def gap(before: str, after: str) -> str:
    """Return what is between two texts: nothing between Chinese characters, else a space."""
    return "" if _HAN.match(before[-1:]) and _HAN.match(after[:1]) else " "
