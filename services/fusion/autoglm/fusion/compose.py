"""How a conversation with media becomes token ids, with placeholders for the media's tokens.

The chat template (Jinja, the bundle's own) sees one opaque stand-in for each part that a client sent: texts, media,
tools, and the names and arguments of tool calls. A client's text is tokenized separately from the template's, so it can
never forge a special token. The layout says how media are written and in which order.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from autoglm.common.modalities import MediaKind
from autoglm.fusion.layout import Layout
from autoglm.fusion.prompt import Media, Prompt, PromptMessage, Role, Run

START_CHARACTERS = (4, 16)  # for each token allowed; the tokens of most texts have about 4

_SLOT = re.compile("\ue000(\\d+)\ue001")


class PromptTooLong(ValueError):
    """A prompt has more than twice as many tokens as it may; how many is not known."""


class Composer:
    """The tokenizer and chat template of a decoder, applied to conversations with media.

    `vocabulary` is one more than the highest token id, gaps included; no token stands for more than `longest` bytes;
    `takes_tools` says whether the template writes tools, and calls with the marks of the layout.
    Raises ValueError when the tokenizer lacks a media token of the layout.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.layout = layout
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._plain.encode_special_tokens = True
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = _to_json
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        self._template = environment.from_string(source)
        variables = find_undeclared_variables(environment.parse(source))
        self.takes_tools = layout.tool_call[0] in source and "tools" in variables
        vocabulary = self.tokenizer.get_vocab()
        self.vocabulary = max(vocabulary.values()) + 1
        self.longest = max(len(token.encode()) for token in vocabulary)
        ids = {text: _id(self.tokenizer, text) for text in layout.media_tokens}
        self._placeholder_ids = {row.kind: ids[row.placeholder] for row in layout.media}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that a client wrote; special tokens in it are encoded as ordinary text."""
        return _encoded(self._plain, text)

    def exceeds(self, text: str, most: int) -> bool:
        """Return whether a long `text` has more than `most` tokens for certain, by its start alone.

        A vocabulary with a token of many spaces admits texts that take minutes to tokenize. What follows the start
        changes no more than its last tokens, so twice as many tokens as allowed leave no doubt.
        """
        starts = (text[: characters * most] for characters in START_CHARACTERS)
        return any(len(start) < len(text) and len(self.encode(start)) > 2 * most for start in starts)

    def encode_template(self, text: str) -> list[int]:
        """Return the ids of a text that the template wrote; it may hold special tokens."""
        return _encoded(self.tokenizer, text)

    def compose(
        self,
        messages: Sequence[PromptMessage],
        enable_thinking: bool | None = None,
        tools: Sequence[str] = (),
        checkpoint: Callable[[], object] = lambda: None,
        most: int | None = None,
    ) -> Prompt:
        """Lay out `messages`, after the descriptions of `tools`, with the start of the next assistant turn.

        `checkpoint` is called before each part is tokenized; what it raises ends the work. Raises PromptTooLong as soon
        as it is certain that there are more than twice as many tokens as `most`.
        """
        slots = _Slots()
        last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
        rendered = self._template.render(
            messages=[_row(message, self.layout, slots, i == last_user) for i, message in enumerate(messages)],
            tools=[slots.hold(tool, "system") for tool in tools],
            add_generation_prompt=True,
            enable_thinking=enable_thinking,
        )
        builder = _Builder(self, self._placeholder_ids, most)
        position = 0
        for match in _SLOT.finditer(rendered):
            checkpoint()
            builder.template(rendered[position : match.start()])
            builder.part(*slots.held[int(match[1])])
            position = match.end()
        opens = self.layout.thinking[0]
        echo = opens if rendered.endswith(opens) else ""
        builder.template(rendered[position : len(rendered) - len(echo)])
        builder.echo(echo)
        return Prompt(builder.token_ids, tuple(builder.runs), echo)


class _Slots:
    """The parts that clients sent, by the stand-in that the template sees: the part, who speaks, whether it asks."""

    def __init__(self) -> None:
        self.held: list[tuple[str | Media, Role, bool]] = []

    def hold(self, part: str | Media, role: Role, asked: bool = False) -> str:
        """Return the stand-in of `part`."""
        self.held.append((part, role, asked))
        return f"\ue000{len(self.held) - 1}\ue001"


def _row(message: PromptMessage, layout: Layout, slots: _Slots, asked: bool) -> dict[str, Any]:
    """Return a message in the form that templates take; the names and arguments of calls are stand-ins too."""
    role = message.role
    parts = [slots.hold(part, role, asked) for part in _in_order(message.parts, layout) if part != ""]
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
    return {"role": role, "content": layout.separator.join(parts)} | ({"tool_calls": calls} if calls else {})


def _in_order(parts: tuple[str | Media, ...], layout: Layout) -> list[str | Media]:
    """Return the parts in the layout's order; parts of one kind keep the client's order."""
    if not layout.media_first:
        return list(parts)
    media = [part for part in parts if isinstance(part, Media)]
    texts = [part for part in parts if isinstance(part, str)]
    return [*sorted(media, key=lambda part: layout.media.index(layout.of(part.kind))), *texts]


def _to_json(value: object, **options: Any) -> str:
    """The filter `tojson` as transformers gives it to templates; a stand-in stays as it is."""
    if isinstance(value, str) and _SLOT.fullmatch(value):
        return value
    return json.dumps(value, **{"ensure_ascii": False} | options)


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of `text`. Unlike `encode`, this lets other threads run meanwhile, and leaves out the offsets,
    which take most of the time."""
    ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids


def _id(tokenizer: Tokenizer, text: str) -> int:
    token_id = tokenizer.token_to_id(text)
    if token_id is None:
        raise ValueError(f"the tokenizer has no token {text}; it cannot take media")
    return token_id


class _Builder:
    """Collects token ids and runs from left to right."""

    def __init__(self, composer: Composer, placeholder_ids: dict[MediaKind, int], most: int | None) -> None:
        self._composer, self._placeholder_ids, self._most = composer, placeholder_ids, most
        self.token_ids: list[int] = []
        self.runs: list[Run] = []
        self._templates: dict[str, list[int]] = {}  # between parts it repeats itself

    def template(self, text: str) -> None:
        """Add text that the template wrote; it may hold special tokens."""
        if text not in self._templates:
            self._templates[text] = self._composer.encode_template(text)
        self._add(self._templates[text])

    def echo(self, text: str) -> None:
        """Add the start of the answer, which takes nothing from media, like the tokens that the decoder generates."""
        self._add(self._composer.encode_template(text), enriched=False)

    def part(self, part: str | Media, role: Role, asked: bool) -> None:
        """Add a part that a client sent."""
        if isinstance(part, str):
            if self._most is not None and self._composer.exceeds(part, self._most):
                raise PromptTooLong
            self._add(self._composer.encode(part), enriched=role != "assistant", asked=asked)
        else:
            layout = self._composer.layout.of(part.kind)
            self.template(layout.begin)
            self._add([self._placeholder_ids[part.kind]] * part.tokens.shape[0], media=part)
            self.part(part.transcript if layout.transcribed else "", role, asked)
            self.template(layout.end)

    def _add(self, ids: list[int], media: Media | None = None, enriched: bool = True, asked: bool = False) -> None:
        if ids:
            start = len(self.token_ids)
            self.token_ids += ids
            self.runs.append(Run(start, len(self.token_ids), media, enriched, asked))
        if self._most is not None and len(self.token_ids) > 2 * self._most:
            raise PromptTooLong
