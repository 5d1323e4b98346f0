"""The costs of autoglm-phone-9b-gcma on a GPU, from the card's published figures: a roofline.

A pass reads every weight once and computes 2 FLOP for each weight and token; it takes as long as the longer of the two,
at EFFICIENCY of what the card's makers state. That share is what was measured on one H200 (docs/adr/0010): 7.0 ms for a
decode step that has to read 17.6 GB at 4.8 TB/s (0.52), 36 ms for a chunk of 1024 tokens at 989 TFLOPS (0.51).
"""

import math
from dataclasses import dataclass

from autoglm.bench.plan.costs import DecoderCost, EncoderCost, PassCost, StageCosts
from autoglm.bench.plan.schema import PlanError
from autoglm.bench.plan.workload import RequestClass, Workload
from autoglm.decoder.engine.cache import BLOCK_SIZE

EFFICIENCY = 0.5
RUNTIME_BYTES = 1_000_000_000  # of a service: CUDA and a forward pass, as in bundles/placement.py
LAUNCH_S = 10e-6  # of a kernel from Python; the encoders have no CUDA graphs

# GLM-4-9B: https://huggingface.co/zai-org/glm-4-9b-chat-hf/blob/main/config.json
DECODER_PARAMETERS = 9.40e9
DECODER_READ = 8.78e9  # of them by a pass: all but the table of embeddings
LAYERS, HEADS, KV_HEADS, HEAD_DIM, LONGEST = 40, 32, 2, 128, 131_072
MAX_NUM_SEQS, MASK_BYTES = 32, 2**26  # decoder/settings.py and decoder/model.py
MARGIN = 4  # standard deviations that a request may be longer than its class's mean

# apple/mobilevit-small at 224 x 224, and openai/whisper-tiny's encoder; both compute in float32.
VISION_FLOP, VISION_KERNELS, VISION_TOKENS, VISION_WIDTH, VISION_BYTES = 3.1e9, 400, 49, 640, 22e6
SPEECH_FLOP, SPEECH_KERNELS, SPEECH_TOKENS, SPEECH_WIDTH, SPEECH_BYTES = 0.82e9, 120, 12.5, 1536, 33e6
SPEECH_PIECE = 30


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as its makers describe it: bytes of memory and bytes a second, FLOP a second in bfloat16 (dense, sums in
    float32) and float32."""

    name: str
    memory: float
    bandwidth: float
    bfloat16: float
    float32: float
    source: str


_ADA = "https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf"
CARDS = {
    "4090": Card("RTX 4090", 24e9, 1008e9, 165.2e12, 82.6e12, _ADA),
    "L4": Card("L4", 24e9, 300e9, 121e12, 30.3e12, "https://www.nvidia.com/en-us/data-center/l4/"),
    "A10": Card("A10", 24e9, 600e9, 125e12, 31.2e12, "https://www.nvidia.com/en-us/data-center/products/a10-gpu/"),
    "H100": Card("H100 SXM", 80e9, 3350e9, 989e12, 67e12, "https://www.nvidia.com/en-us/data-center/h100/"),
}


def card_costs(card: Card, host: StageCosts, cores: int, workload: Workload) -> StageCosts:
    """Return the costs on `card`. What runs on CPUs is taken from `host`, a measured machine: gateway, calls and
    preprocessing; each GPU's host has `cores` cores. The context is as long as `workload` needs it."""
    threads = max(1, cores // 2)  # as `threads: 0` means
    return StageCosts(
        device=card.name,
        cores=1,
        memory_bytes=int(card.memory),
        on_cpu=False,
        gateway=host.gateway,
        vision=EncoderCost(
            hop_s=host.vision.hop_s,
            preprocess_s=host.vision.preprocess_s,
            preprocess_threads=threads,
            forward=_encoder_pass(card, VISION_FLOP, VISION_KERNELS),
            max_batch=8,
            batch_wait_s=host.vision.batch_wait_s,
            tokens_per_unit=VISION_TOKENS,
            embedding_bytes_per_unit=2 * VISION_TOKENS * VISION_WIDTH,
            memory_bytes=int(VISION_BYTES) + RUNTIME_BYTES,
        ),
        speech=EncoderCost(
            hop_s=host.speech.hop_s,
            preprocess_s=host.speech.preprocess_s,
            preprocess_threads=threads,
            forward=_encoder_pass(card, SPEECH_FLOP, SPEECH_KERNELS),
            max_batch=4,
            batch_wait_s=host.speech.batch_wait_s,
            piece_units=SPEECH_PIECE,
            tokens_per_unit=SPEECH_TOKENS,
            embedding_bytes_per_unit=int(2 * SPEECH_TOKENS * SPEECH_WIDTH),
            memory_bytes=int(SPEECH_BYTES) + RUNTIME_BYTES,
        ),
        decoder=_decoder(card, _context(workload)),
    )


def decoder_passes(card: Card) -> tuple[PassCost, PassCost]:
    """Return what a prefill and a decode step cost."""
    weights = 2 * DECODER_READ / (card.bandwidth * EFFICIENCY)
    token = 2 * DECODER_READ / (card.bfloat16 * EFFICIENCY)
    attention = 4 * LAYERS * HEADS * HEAD_DIM / (card.bfloat16 * EFFICIENCY)
    reading = _kv_bytes() / (card.bandwidth * EFFICIENCY)
    prefill = PassCost(base_s=0, token_s=token, context_s=attention, weights_s=weights)
    return prefill, PassCost(base_s=0, token_s=token, context_s=reading, weights_s=weights)


def _encoder_pass(card: Card, flop: float, kernels: int) -> PassCost:
    return PassCost(base_s=kernels * LAUNCH_S, token_s=flop / (card.float32 * EFFICIENCY))


def _decoder(card: Card, context: int) -> DecoderCost:
    prefill, decode = decoder_passes(card)
    chunk = max(32, min(1024, MASK_BYTES // (HEADS // KV_HEADS * context * 2)))
    return DecoderCost(
        prefill=prefill,
        decode=decode,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=chunk,
        max_model_len=context,
        kv_bytes_per_token=_kv_bytes(),
        memory_bytes=int(2 * DECODER_PARAMETERS) + RUNTIME_BYTES,
    )


def _kv_bytes() -> int:
    return 2 * LAYERS * KV_HEADS * HEAD_DIM * 2


def _context(workload: Workload) -> int:
    """Return the max_model_len that the workload needs, in whole blocks."""
    longest = max(map(_longest, workload.classes))
    if longest > LONGEST:
        raise PlanError(f"classes: a request has up to {longest} tokens, and the model takes {LONGEST}")
    return math.ceil(longest / BLOCK_SIZE) * BLOCK_SIZE


def _longest(one: RequestClass) -> int:
    sound = SPEECH_TOKENS * (one.audio_seconds + MARGIN * one.audio_seconds_stdev)
    text = one.prompt_tokens + one.output_tokens + MARGIN * (one.prompt_tokens_stdev + one.output_tokens_stdev)
    return math.ceil(text + VISION_TOKENS * one.images + sound)
