"""Conversations and prompts as plain data: what goes into the composer, and what comes out of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from autoglm.common.modalities import MediaKind

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, eq=False)
class Media:
    """One image or recording as its encoder's tokens [n, width].

    `transcript` is what its encoder read or heard in it, "" where it wrote none. `grid` is (tokens high, tokens wide)
    where the tokens are a map in row-major order, and empty where they are a sequence.
    """

    kind: MediaKind
    tokens: Tensor
    transcript: str = ""
    grid: tuple[int, ...] = ()

    @cached_property
    def digest(self) -> bytes:
        """A hash of kind, tokens and grid; two media with one digest become the same inputs."""
        data = self.tokens.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{self.kind} {data.dtype} {tuple(data.shape)} {self.grid}".encode())
        digest.update(data.view(torch.uint8).flatten().numpy().data)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the assistant called, and its arguments as the model writes them: strings as they are, other
    values as JSON."""

    name: str
    arguments: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One turn: who speaks, the parts in the order in which the client sent them, and the functions called."""

    role: Role
    parts: tuple[str | Media, ...]
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive tokens of one nature: [start, stop) in the prompt.

    `media` is set for a media item. `enriched` says whether text may take from media (an assistant's text may not: it
    must stay what the decoder generated). `asked` marks the text of the last user message.
    """

    start: int
    stop: int
    media: Media | None = None
    enriched: bool = True
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation laid out as tokens. `echo` is the start of the answer that the template has already written."""

    token_ids: list[int]
    runs: tuple[Run, ...]
    echo: str

    def count(self, kind: MediaKind) -> int:
        """Return how many of the tokens are placeholders for media of `kind`."""
        return sum(run.stop - run.start for run in self.runs if run.media is not None and run.media.kind == kind)
