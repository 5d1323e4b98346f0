"""How an architecture writes media into a prompt, and the marks that its models put into their answers."""

from dataclasses import dataclass

from autoglm.common.modalities import MediaKind


@dataclass(frozen=True, slots=True)
class MediaLayout:
    """How one kind of media is written: `begin`, one `placeholder` per embedding token, the transcript if
    `transcribed`, `end`. Each of the three texts is one special token of the tokenizer."""

    kind: MediaKind
    begin: str
    placeholder: str
    end: str
    transcribed: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a message, and the marks of an architecture.

    With `media_first`, media come before text, in the order of `media`; without it, parts keep the client's order.
    `separator` is written between parts. `thinking` and `tool_call` are the texts that open and close a model's
    reasoning and a function call.
    """

    media: tuple[MediaLayout, ...]
    media_first: bool = True
    separator: str = ""
    thinking: tuple[str, str] = ("<think>", "</think>")
    tool_call: tuple[str, str] = ("<tool_call>", "</tool_call>")

    @property
    def media_tokens(self) -> tuple[str, ...]:
        """Return the special tokens that the tokenizer needs for media."""
        return tuple(text for row in self.media for text in (row.begin, row.placeholder, row.end))

    def of(self, kind: MediaKind) -> MediaLayout:
        """Return the layout of media of `kind`; raises ValueError if the architecture does not take them."""
        for row in self.media:
            if row.kind == kind:
                return row
        raise ValueError(f"this architecture does not take {kind}")
