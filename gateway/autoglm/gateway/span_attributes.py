"""The attributes of the gateway's spans: OpenTelemetry's `gen_ai.*`, and `autoglm.*` for what those have no words for.

They are counts, sizes, options and names, never what was sent or answered: no messages, stop strings or tools.
"""

from autoglm.common.modalities import MODALITY_NAMES
from autoglm.common.tracing import Attributes
from autoglm.gateway.context import RequestContext
from autoglm.gateway.media.verify import VerifiedMedia
from autoglm.gateway.metrics import FINISH_NAMES
from autoglm.v1.decoder_pb2 import DecoderFinish, DecoderServiceGenerateRequest

_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "presence_penalty", "frequency_penalty")


def media_attributes(media: VerifiedMedia) -> Attributes:
    """Return what a span says of an image or a recording."""
    return {"autoglm.modality": MODALITY_NAMES[media.modality], "autoglm.media.bytes": len(media.data)}


def operation_attributes(operation: str, context: RequestContext) -> Attributes:
    """Return what a span says of a call to the decoder."""
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "autoglm",
        "gen_ai.request.model": context.model,
        "gen_ai.response.id": context.request_id,
    }


def generation_attributes(index: int, request: DecoderServiceGenerateRequest, context: RequestContext) -> Attributes:
    """Return what a span says of choice `index`, which `request` asks for."""
    options = {field.name: value for field, value in request.sampling.ListFields()}
    given = {f"gen_ai.request.{name}": options[name] for name in _SAMPLING if name in options}
    return {**operation_attributes("chat", context), "autoglm.choice.index": index, **given}


def finish_attributes(finish: DecoderFinish) -> Attributes:
    """Return what a span says of the end of an answer: why, how many tokens of which kind, and the mean gates."""
    usage = finish.usage
    return {
        "gen_ai.response.finish_reasons": [FINISH_NAMES.get(finish.finish_reason, "unknown")],
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        "autoglm.usage.image_tokens": usage.image_tokens,
        "autoglm.usage.audio_tokens": usage.audio_tokens,
        **{f"autoglm.gate.{MODALITY_NAMES[gate.modality]}": round(gate.mean, 4) for gate in finish.gates},
    }
