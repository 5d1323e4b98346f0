"""How a conversation with embeddings becomes token ids and places for media.

Each message is laid out media first, images before audio, then text, so that text and speech can
look back at the screen and nothing ever looks ahead. The transcript of a recording, where its encoder
wrote one, stands behind the recording's tokens as the user's own text. The chat template (Jinja, the bundle's own)
sees one placeholder per media item and an opaque stand-in per text, tools and calls of them included; user text is
encoded apart, so it can never forge a special token.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from torch import Tensor

from autoglm.common.modalities import MEDIA_MODALITIES, MediaKind

Role = Literal["system", "user", "assistant", "tool"]
MEDIA_TOKENS = tuple(
    text for row in MEDIA_MODALITIES for text in (f"<|begin_of_{row.kind}|>", row.placeholder, f"<|end_of_{row.kind}|>")
)
_SLOT = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True, slots=True, eq=False)
class Media:
    """One image or recording as its encoder's tokens [n, width], and what is said in it, where that is known."""

    kind: MediaKind
    tokens: Tensor
    transcript: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A function that the assistant called, and its arguments as the model writes them: text as it is, else JSON."""

    name: str
    arguments: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, the parts in the order in which the client sent them, and the functions called."""

    role: Role
    parts: tuple[str | Media, ...]
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of consecutive tokens of one nature: [start, stop) in the prompt.

    `media` is set for a media item. `enriched` says whether text may take from media (assistant
    text may not: it must stay what the decoder generated). `asked` marks the last user message's text.
    """

    start: int
    stop: int
    media: Media | None = None
    enriched: bool = True
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A laid-out conversation. `echo` is the part of the answer that the template already wrote."""

    token_ids: list[int]
    runs: tuple[Run, ...]
    echo: str

    def count(self, kind: MediaKind) -> int:
        """Return how many tokens stand for media of `kind`."""
        return sum(run.stop - run.start for run in self.runs if run.media is not None and run.media.kind == kind)


class Composer:
    """The tokenizer and chat template of a decoder, applied to conversations with media. `vocabulary` is how many ids
    the tokenizer reaches, gaps included, `longest` the characters of its longest token; `takes_tools` tells whether the
    template knows tools and GLM-4.5's calls."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._plain.encode_special_tokens = True
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = _to_json
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        self._template = environment.from_string(source)
        self.takes_tools = "<tool_call>" in source and "tools" in find_undeclared_variables(environment.parse(source))
        vocabulary = self.tokenizer.get_vocab()
        self.vocabulary = max(vocabulary.values()) + 1
        self.longest = max(map(len, vocabulary))
        ids = {text: _id(self.tokenizer, text) for text in MEDIA_TOKENS}
        self._placeholder_ids = {row.kind: ids[row.placeholder] for row in MEDIA_MODALITIES}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that a client wrote: what looks like a special token in it is none."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def compose(
        self, messages: Sequence[Message], enable_thinking: bool | None = None, tools: Sequence[str] = ()
    ) -> Prompt:
        """Lay out `messages`, behind what describes `tools`, with the prompt for the next assistant turn."""
        slots = _Slots()
        last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
        rendered = self._template.render(
            messages=[_row(message, slots, i == last_user) for i, message in enumerate(messages)],
            tools=[slots.hold(tool, "system") for tool in tools],
            add_generation_prompt=True,
            enable_thinking=enable_thinking,
        )
        builder = _Builder(self, self._placeholder_ids)
        position = 0
        for match in _SLOT.finditer(rendered):
            builder.template(rendered[position : match.start()])
            builder.part(*slots.held[int(match[1])])
            position = match.end()
        echo = "<think>" if rendered.endswith("<think>") else ""
        builder.template(rendered[position : len(rendered) - len(echo)])
        builder.echo(echo)
        return Prompt(builder.token_ids, tuple(builder.runs), echo)


class _Slots:
    """What clients sent, each behind the stand-in that the template sees: the part, who speaks, whether it asks."""

    def __init__(self) -> None:
        self.held: list[tuple[str | Media, Role, bool]] = []

    def hold(self, part: str | Media, role: Role, asked: bool = False) -> str:
        """Return the stand-in of `part`."""
        self.held.append((part, role, asked))
        return f"\ue000{len(self.held) - 1}\ue001"


def _row(message: Message, slots: _Slots, asked: bool) -> dict[str, Any]:
    """Return a message as templates know them; the names and arguments of calls are stand-ins too."""
    role = message.role
    content = "".join(slots.hold(part, role, asked) for part in _in_order(message.parts) if part != "")
    calls = [
        {
            "type": "function",
            "function": {
                "name": slots.hold(call.name, role),
                "arguments": {slots.hold(k, role): slots.hold(v, role) for k, v in call.arguments.items()},
            },
        }
        for call in message.calls
    ]
    return {"role": role, "content": content} | ({"tool_calls": calls} if calls else {})


def _to_json(value: object, **options: Any) -> str:
    """Be the filter that transformers gives to templates; a stand-in stays one."""
    if isinstance(value, str) and _SLOT.fullmatch(value):
        return value
    return json.dumps(value, **{"ensure_ascii": False} | options)


def _id(tokenizer: Tokenizer, text: str) -> int:
    token_id = tokenizer.token_to_id(text)
    if token_id is None:
        raise ValueError(f"the tokenizer has no token {text}; it cannot take media")
    return token_id


def _in_order(parts: tuple[str | Media, ...]) -> list[str | Media]:
    """Return images, then audio, then text, each in the client's order."""
    media = [part for row in MEDIA_MODALITIES for part in parts if isinstance(part, Media) and part.kind == row.kind]
    return [*media, *(part for part in parts if isinstance(part, str))]


class _Builder:
    """Collects token ids and runs from left to right."""

    def __init__(self, composer: Composer, placeholder_ids: dict[MediaKind, int]) -> None:
        self._composer, self._placeholder_ids = composer, placeholder_ids
        self.token_ids: list[int] = []
        self.runs: list[Run] = []

    def template(self, text: str) -> None:
        """Add text that the template wrote; it may hold special tokens."""
        self._add(self._composer.tokenizer.encode(text, add_special_tokens=False).ids)

    def echo(self, text: str) -> None:
        """Add the start of the answer, as plain as the tokens that the decoder will generate."""
        self._add(self._composer.tokenizer.encode(text, add_special_tokens=False).ids, enriched=False)

    def part(self, part: str | Media, role: Role, asked: bool) -> None:
        """Add what a client sent."""
        if isinstance(part, str):
            self._add(self._composer.encode(part), enriched=role != "assistant", asked=asked)
        else:
            self.template(f"<|begin_of_{part.kind}|>")
            self._add([self._placeholder_ids[part.kind]] * part.tokens.shape[0], media=part)
            self.part(part.transcript, role, asked)
            self.template(f"<|end_of_{part.kind}|>")

    def _add(self, ids: list[int], media: Media | None = None, enriched: bool = True, asked: bool = False) -> None:
        if ids:
            start = len(self.token_ids)
            self.token_ids += ids
            self.runs.append(Run(start, len(self.token_ids), media, enriched, asked))
