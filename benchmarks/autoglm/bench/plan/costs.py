"""What each stage costs: what `autoglm bench stages` measures, or a card's published figures give (cards.py).

A forward pass takes `base_s`, what its work takes, and `context_s` for each earlier token that a token sees. Work is
bound by memory (`weights_s`, to read every weight once) or by arithmetic (`token_s` each): the roofline.
"""

import math
from pathlib import Path
from typing import Self

from pydantic import Field

from autoglm.bench.plan.schema import PlanError, PlanSchema, read_mapping, validated

CPU_SHARE, GPU_SHARE = 0.25, 0.9  # of the free memory, for keys and values by default; see decoder/model.py


class PassCost(PlanSchema):
    """Seconds of a forward pass."""

    base_s: float = Field(ge=0, description="Of any pass.")
    token_s: float = Field(ge=0, description="For each token of the pass.")
    context_s: float = Field(default=0, ge=0, description="For each earlier token that a token of the pass sees.")
    weights_s: float = Field(
        default=0, ge=0, description="To read the weights; the tokens of the pass take at least this."
    )

    def seconds(self, tokens: float, context: float = 0) -> float:
        """Return the seconds of a pass of `tokens` tokens, which see `context` earlier ones in sum."""
        return self.base_s + max(self.weights_s, self.token_s * tokens) + self.context_s * context


class EncoderCost(PlanSchema):
    """An encoder. Its unit of work is a picture, or a second of sound."""

    hop_s: float = Field(ge=0, description="Of a call, outside of the encoder: gateway, ingress and gRPC.")
    preprocess_s: float = Field(ge=0, description="Of CPU for a unit, before its forward pass.")
    preprocess_threads: int = Field(default=1, ge=1, description="Threads that preprocess in a replica.")
    forward: PassCost = Field(description="A batch; its tokens are units.")
    max_batch: int = Field(ge=1, description="Most items in a pass.")
    batch_wait_s: float = Field(ge=0, description="How long an incomplete batch waits for more.")
    piece_units: float = Field(
        default=1, gt=0, description="Units in an item at most; longer media are cut into items."
    )
    tokens_per_unit: float = Field(gt=0, description="Embedding tokens of a unit.")
    embedding_bytes_per_unit: int = Field(ge=1, description="Bytes in the cache for a unit.")
    memory_bytes: int = Field(ge=0, description="Weights and runtime of a replica, on its device.")

    def unit_seconds(self, batch: int) -> float:
        """Return the seconds of a forward pass for each unit, in full items and batches of `batch`."""
        return self.forward.seconds(batch * self.piece_units) / (batch * self.piece_units)

    def alone(self, units: float) -> float:
        """Return the seconds of a medium that meets no other, the call left out."""
        pieces = math.ceil(units / self.piece_units - 1e-9)
        batches = [min(self.max_batch, pieces - first) for first in range(0, pieces, self.max_batch)]
        waits = sum(self.batch_wait_s for size in batches if size < self.max_batch)
        forward = sum(self.forward.seconds(size * units / pieces) for size in batches)
        return self.preprocess_s * units + waits + forward


class DecoderCost(PlanSchema):
    """The decoder's engine."""

    prefill: PassCost
    decode: PassCost
    max_num_seqs: int = Field(ge=1, description="Sequences that run at a time.")
    max_num_batched_tokens: int = Field(ge=1, description="Prompt tokens in a step.")
    max_model_len: int = Field(ge=2, description="Tokens of prompt and answer together.")
    kv_bytes_per_token: int = Field(ge=1, description="Keys and values of a token.")
    memory_bytes: int = Field(ge=0, description="Weights and runtime of a replica, on its device.")


class GatewayCost(PlanSchema):
    """The gateway and what is between it and the decoder."""

    request_s: float = Field(ge=0, description="Of a request, until the decoder has it and after the first token.")
    token_s: float = Field(ge=0, description="Of a token, from the decoder to the client.")
    request_cpu_s: float = Field(ge=0, description="CPU time of a gateway process for a request without its tokens.")
    token_cpu_s: float = Field(ge=0, description="CPU time of a gateway process for a token.")
    memory_bytes: int = Field(ge=0, description="Of a gateway process.")


class StageCosts(PlanSchema):
    """The costs of a bundle on one kind of device, and that device."""

    device: str = Field(description="What computes.")
    cores: int = Field(ge=1, description="Threads that compute at a time: the cores of a CPU; 1 for a GPU.")
    memory_bytes: int = Field(ge=1, description="Memory of the device.")
    on_cpu: bool = Field(description="Whether encoders, decoder and gateway all compute on these cores.")
    gateway: GatewayCost
    vision: EncoderCost
    speech: EncoderCost
    decoder: DecoderCost

    @property
    def cache_share(self) -> float:
        """Return the share of the free memory that a decoder takes for keys and values."""
        return CPU_SHARE if self.on_cpu else GPU_SHARE

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a result of `autoglm bench stages`; raises PlanError."""
        raw = read_mapping(path)
        if "costs" not in raw:
            raise PlanError(f"{path} has no field costs: name a file that `autoglm bench stages` has written")
        return validated(cls, raw["costs"], f"{path}: costs")
