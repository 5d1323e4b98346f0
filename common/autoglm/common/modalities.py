"""The modalities of the mesh, one row each, with every name and number that belongs to a modality.

docs/extending.md lists what a new modality needs apart from a row here.
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
    """A modality with its own encoder.

    `kind` is its name in the API, in cache keys and in metrics; `number` is its value in autoglm.v1.Modality. `part` is
    the bundle's folder with its encoder, `application` the Ray Serve application that runs the encoder. `placeholder`
    is the token that is replaced by an embedding token in a prompt. `spoken` media contain words, which the queries of
    the fusion read as context.
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
