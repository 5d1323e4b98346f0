"""What is measured, and how."""

import os
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers.models.glm import GlmConfig
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.common.bundle import Bundle
from autoglm.decoder.engine.cache import num_blocks
from autoglm.decoder.engine.models.glm import Glm
from autoglm.decoder.engine.scheduler import EngineLimits
from autoglm.decoder.model import MAX_NUM_BATCHED_TOKENS
from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion

IN, OUT = 128, 64  # tokens of a prompt and of an answer
CONTEXT, SLOTS = 2048, 32
WIDE = EngineLimits(SLOTS, MAX_NUM_BATCHED_TOKENS["cpu"], SLOTS * num_blocks(CONTEXT), enable_prefix_caching=False)
SEED = 0
GLM_127M = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 16384, "pad_token_id": 0}  # fmt: skip
GLM_4_9B: dict[str, int] = {}  # its sizes are the defaults of GlmConfig
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class EngineBenchConfig:
    """How it is measured. On a CPU `threads` compute, on both sides."""

    quick: bool
    device: str
    dtype: str
    threads: int
    rounds: int
    streams: tuple[int, ...]

    @classmethod
    def of(cls, quick: bool, device: str, dtype: str, threads: int, rounds: int) -> "EngineBenchConfig":
        """Return the config of a command line; `quick` halves the streams and takes two rounds at most."""
        threads = threads or max(1, (os.cpu_count() or 1) // 2)
        streams = (1, 8) if quick else (1, 8, 32)
        return cls(quick, device, dtype, threads, min(rounds, 2) if quick else rounds, streams)

    @property
    def limits(self) -> EngineLimits:
        """Return what the engine may take."""
        return replace(WIDE, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS[self.device])

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        gpu = torch.cuda.get_device_name() if self.device == "cuda" else None
        return asdict(self) | {"gpu": gpu, "prompt_tokens": IN, "answer_tokens": OUT}


@dataclass(frozen=True, slots=True)
class ModelUnderTest:
    """A model that is measured; `composer` is None where it has no words, only token ids."""

    name: str
    source: GlmForCausalLM
    glm: Glm
    fusion: GcmaFusion
    composer: Composer | None

    @classmethod
    def of(cls, bundle: Bundle, dtype: torch.dtype, device: str) -> "ModelUnderTest":
        """Return a bundle's decoder and fusion."""
        folder = bundle.part("decoder")
        source = GlmForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device).eval()
        fusion = GcmaFusion.from_pretrained(bundle.part("fusion"), dtype).to(device)
        return cls(bundle.name, source, _glm(source), fusion, Composer(folder, GCMA_LAYOUT))

    @classmethod
    def random(cls, sizes: Mapping[str, int], dtype: torch.dtype, device: str) -> "ModelUnderTest":
        """Return a GLM of random weights."""
        torch.manual_seed(SEED)
        config = GlmConfig(**sizes, max_position_embeddings=CONTEXT, attention_bias=True)
        with torch.device(device):
            source = GlmForCausalLM._from_config(config, dtype=dtype).eval()
            fusion = GcmaFusion(GcmaConfig(text_width=config.hidden_size)).to(dtype).eval()
        size = sum(weight.numel() for weight in source.parameters())
        return cls(f"GLM of {size / 1e6:.0f} M, random", source, _glm(source), fusion, None)

    def ids(self, n: int, seed: int) -> list[list[int]]:
        """Return `n` prompts of random tokens."""
        draw = random.Random(seed)
        return [[draw.randrange(100, self.glm.config.vocab_size - 100) for _ in range(IN)] for _ in range(n)]


def _glm(source: GlmForCausalLM) -> Glm:
    return Glm(source, CONTEXT).to(source.device)
