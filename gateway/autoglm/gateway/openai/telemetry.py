"""Where the time of an answer went: the `autoglm` object of a body, and the Server-Timing header."""

from typing import Any, Literal

from google.protobuf.duration_pb2 import Duration
from pydantic import BaseModel

from autoglm.common.modalities import MODALITY_NAMES
from autoglm.gateway.metrics import OUTCOMES
from autoglm.gateway.pipeline import Summary
from autoglm.v1.generation_pb2 import Stages

Modality = Literal["text", "image", "audio"]


class MediaTime(BaseModel):
    """The source of an image's or a recording's embedding, and the milliseconds it took."""

    modality: Modality
    cache: Literal["miss", "local", "redis", "shared"] | None
    encode: float


class StageTimes(BaseModel):
    """The time of each stage, in milliseconds."""

    queue: float
    fetch: float
    prefill: float
    decode: float
    total: float
    media: list[MediaTime]


class Telemetry(BaseModel):
    """The stages of an answer, and the mean gate of each modality, from 0 to 1."""

    stages: StageTimes
    gates: dict[Modality, float]


def telemetry(summary: Summary) -> dict[str, Any]:
    """Return the `autoglm` object of an answer: its stages in milliseconds, and its gates."""
    stages = summary.stages
    media = [
        {"modality": MODALITY_NAMES[m.modality], "cache": OUTCOMES.get(m.cache), "encode": _ms(m.encode)}
        for m in stages.media
    ]
    times = {name: _ms(getattr(stages, name)) for name in ("queue", "fetch", "prefill", "decode", "total")}
    gates = {MODALITY_NAMES[gate.modality]: round(gate.mean, 4) for gate in summary.gates}
    return {"stages": {**times, "media": media}, "gates": gates}


def server_timing(stages: Stages) -> str:
    """Return the Server-Timing header."""
    media = [f"encode;desc={MODALITY_NAMES[m.modality]};dur={_ms(m.encode)}" for m in stages.media]
    rest = [f"{name};dur={_ms(getattr(stages, name))}" for name in ("queue", "prefill", "decode", "total")]
    return ", ".join([f"fetch;dur={_ms(stages.fetch)}", *media, *rest])


def _ms(duration: Duration) -> float:
    return round(duration.ToNanoseconds() / 1e6, 3)
