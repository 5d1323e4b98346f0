"""The modalities of the mesh, one row each: every name, number and place that belongs to a modality is looked up here.

A row is added when a modality is added; docs/extending.md lists what else a new one needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autoglm.v1.modality_pb2 import MODALITY_AUDIO, MODALITY_IMAGE, MODALITY_TEXT, Modality

PartName = Literal["vision", "speech", "fusion", "decoder"]
ApplicationName = Literal["vision", "speech", "decoder"]
MediaKind = Literal["image", "audio"]


@dataclass(frozen=True, slots=True)
class MediaModality:
    """A modality that has an encoder of its own.

    `kind` is its name in the API, in cache keys and metrics; `number` its value in autoglm.v1.Modality. `part` is the
    bundle's folder with its encoder, `application` the Ray Serve application that runs it, `placeholder` the token
    that stands for one embedding token in a prompt. `spoken` media carry words, which queries of the fusion read as
    context.
    """

    kind: MediaKind
    number: Modality.ValueType
    part: PartName
    application: ApplicationName
    placeholder: str
    spoken: bool = False


MEDIA_MODALITIES: tuple[MediaModality, ...] = (
    MediaModality("image", MODALITY_IMAGE, "vision", "vision", "<|image|>"),
    MediaModality("audio", MODALITY_AUDIO, "speech", "speech", "<|audio|>", spoken=True),
)
BY_KIND: Mapping[MediaKind, MediaModality] = {row.kind: row for row in MEDIA_MODALITIES}
BY_NUMBER: Mapping[int, MediaModality] = {row.number: row for row in MEDIA_MODALITIES}
MODALITY_NAMES: Mapping[int, str] = {
    MODALITY_TEXT: "text",
    **{row.number: row.kind for row in MEDIA_MODALITIES},
}
APPLICATION_PARTS: Mapping[ApplicationName, tuple[PartName, ...]] = {
    **{row.application: (row.part,) for row in MEDIA_MODALITIES},
    "decoder": ("fusion", "decoder"),
}
PARTS: tuple[PartName, ...] = tuple(part for parts in APPLICATION_PARTS.values() for part in parts)
