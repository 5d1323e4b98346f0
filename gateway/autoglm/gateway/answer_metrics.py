"""The latencies and tokens of one answer, measured as its steps go by."""

import time
from collections.abc import Collection, Iterable

from autoglm.common.modalities import MEDIA_MODALITIES
from autoglm.gateway.context import RequestContext
from autoglm.gateway.conversation import MediaPart
from autoglm.gateway.metrics import FINISH_NAMES, OTHER, GatewayMetrics, exemplar_of
from autoglm.v1.generation_pb2 import FinishReason, Gate, Stages, Usage


class AnswerMetrics:
    """Measures one answer. A step costs one clock and one observation."""

    def __init__(
        self, metrics: GatewayMetrics, context: RequestContext, media: Iterable[MediaPart], stream: bool
    ) -> None:
        """Begin before the first step; `media` and `stream` become labels."""
        labels = ("true" if stream else "false", media_label({part.modality for part in media}))
        self._metrics, self._context = metrics, context
        self._first_token, self._whole = metrics.first_token.labels(*labels), metrics.whole.labels(*labels)
        self._latest: dict[int, float] = {}  # when each choice had its last step

    def step(self, index: int) -> None:
        """Record a step of choice `index`."""
        now = time.monotonic()
        if not self._latest:
            self._first_token.observe(now - self._context.started, exemplar_of(self._context))
        elif index in self._latest:
            self._metrics.next_token.observe(now - self._latest[index])
        self._latest[index] = now

    def finished(self, reason: FinishReason.ValueType) -> None:
        """Count one finished choice."""
        self._metrics.success.labels(FINISH_NAMES.get(reason, OTHER)).inc()

    def ended(self, usage: Usage, stages: Stages, gates: Iterable[Gate]) -> None:
        """Record the whole answer."""
        self._whole.observe(time.monotonic() - self._context.started, exemplar_of(self._context))
        self._metrics.gated(gates)
        self._count_tokens(usage)
        queue, prefill, decode = (
            taken.ToNanoseconds() / 1e9 for taken in (stages.queue, stages.prefill, stages.decode)
        )
        seconds = {"queue": queue, "prefill": prefill, "decode": decode, "inference": prefill + decode}
        for stage, taken in seconds.items():
            self._metrics.stages[stage].observe(taken)
        later = usage.completion_tokens / len(self._latest) - 1  # tokens of a choice after its first
        if later > 0:
            self._metrics.per_token.observe(decode / later)

    def _count_tokens(self, usage: Usage) -> None:
        self._metrics.prompt_tokens.observe(usage.prompt_tokens)
        self._metrics.generated_tokens.observe(usage.completion_tokens)
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("image", usage.image_tokens),
            ("audio", usage.audio_tokens),
            ("cached", usage.cached_tokens),
            ("generated", usage.completion_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            self._metrics.usage.labels(kind).inc(count)


def media_label(modalities: Collection[int]) -> str:
    """Return which media a request has: `none`, `image`, `audio` or `image+audio`."""
    return "+".join(row.kind for row in MEDIA_MODALITIES if row.number in modalities) or "none"
