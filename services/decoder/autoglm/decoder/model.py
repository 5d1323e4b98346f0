"""The decoder's parts of a bundle, loaded: decoder, fusion, tokenizer and template."""

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig

from autoglm.common.bundle import Bundle
from autoglm.common.errors import InvalidRequest
from autoglm.common.memory import available_memory
from autoglm.common.modalities import BY_NUMBER
from autoglm.common.tensors import TensorError
from autoglm.common.torch_tensors import to_torch
from autoglm.decoder.architectures import Architecture, architecture_of
from autoglm.decoder.detokenizer import special_tokens
from autoglm.decoder.engine.adapter_files import check_adapters
from autoglm.decoder.engine.cache import BLOCK_SIZE, num_blocks
from autoglm.decoder.engine.core import EngineCore
from autoglm.decoder.engine.engine import EmbeddedEngine
from autoglm.decoder.engine.grammar import Grammars
from autoglm.decoder.engine.lora import Adapter, Adapters, load
from autoglm.decoder.engine.models.glm import Glm, adapted_matrices
from autoglm.decoder.engine.protocol import Engine
from autoglm.decoder.engine.request import Thinking
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.scheduler import EngineLimits
from autoglm.decoder.engine.vllm_engine import EndTokens, VllmEngine, VllmOptions, max_lora_rank_of
from autoglm.decoder.formats import Formats
from autoglm.decoder.settings import DecoderSettings
from autoglm.fusion.compose import Composer
from autoglm.fusion.layout import Layout
from autoglm.fusion.prompt import Media, Prompt
from autoglm.fusion.protocol import Fusion
from autoglm.v1 import embedding_pb2

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_NUM_BATCHED_TOKENS = {"cpu": 256, "cuda": 1024}  # prompt tokens prefilled in a step, by default
GPU_MASK = 2**26  # bytes that the mask of such a chunk of prompt may take there
CPU_SHARE, GPU_SHARE = 0.25, 0.9  # of the free memory, for the cache, by default


@dataclass(frozen=True, slots=True)
class DecoderModel:
    """What the servicer needs: a running engine, and what turns a request into the engine's terms.

    `max_new_tokens` is the bundle's limit for answers whose request sets none; None means that only the context does.
    """

    bundle: Bundle
    engine: Engine
    fusion: Fusion
    embed: nn.Embedding
    context: int
    max_new_tokens: int | None
    device: torch.device
    composer: Composer
    grammars: Grammars
    formats: Formats
    adapters: Adapters
    int8: bool

    @classmethod
    def load(cls, bundle: Bundle, settings: DecoderSettings) -> "DecoderModel":
        """Open the decoder and fusion parts of `bundle` and start the engine.

        Raises BundleError when a part is incomplete, the architecture unknown or an adapter damaged, ValueError for
        settings that cannot be met: `int8` on a GPU or with vLLM, a cache in which not even one conversation fits, vLLM
        where it is not installed.
        """
        architecture = architecture_of(bundle)
        device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        _check(settings, device)
        dtype = settings.dtype or ("bfloat16" if device.type == "cuda" else "float32")
        folder = bundle.part("decoder")
        config = AutoConfig.from_pretrained(folder)
        if bundle.adapters:
            check_adapters(bundle, adapted_matrices(config))
        token_ids = TokenIds.of(folder, config.vocab_size, architecture.layout)
        context = min(config.max_position_embeddings, settings.max_model_len or 2**31)
        compute = ComputeConfig(architecture, device, dtype, context)
        fusion = architecture.load_fusion(bundle.part("fusion"), compute.torch_dtype, device)
        start = _start_vllm if settings.engine == "vllm" else _start_embedded
        grammars = Grammars(folder / "tokenizer.json", token_ids.stops)
        engine, embed, adapters = start(bundle, settings, fusion, compute, token_ids, grammars)
        limit, composer = GenerationConfig.from_pretrained(folder).max_new_tokens, token_ids.composer
        formats = Formats(
            folder / "tokenizer.json", token_ids.stops, architecture.layout.tool_call, lambda: grammars.is_busy
        )
        return cls(
            bundle, engine, fusion, embed, context, limit, device, composer, grammars, formats, adapters, settings.int8
        )

    def media(self, embedding: embedding_pb2.Embedding, param: str) -> Media:
        """Return an encoder's embedding in the form that the fusion takes.

        Raises InvalidRequest, which names `param`, if it has another shape or the fusion does not take its modality.
        """
        modality, widths = BY_NUMBER.get(embedding.modality), self.fusion.media_widths
        if modality is None or modality.kind not in widths:
            raise InvalidRequest(f"bundle {self.bundle.name} does not understand this medium", param=param)
        kind = modality.kind
        try:
            tokens = to_torch(embedding.tokens)
        except TensorError as error:
            raise InvalidRequest(f"the {kind} embedding is damaged: {error}", param=param) from error
        if tokens.ndim != 2 or tokens.shape[1] != widths[kind]:
            raise InvalidRequest(
                f"the {kind} embedding has shape {list(tokens.shape)}, not [tokens, {widths[kind]}]", param=param
            )
        grid = tuple(embedding.grid)
        if grid and (len(grid) != 2 or math.prod(grid) != len(tokens)):
            raise InvalidRequest(f"the {kind} embedding has grid {list(grid)} and {len(tokens)} tokens", param=param)
        media = Media(kind, tokens, embedding.transcript, grid)
        _ = media.digest  # now, as the engine, which needs it, makes everybody wait meanwhile
        return media

    @property
    def max_text_bytes(self) -> int:
        """Return the most bytes of text that the context can hold, were each of its tokens the longest."""
        return self.context * self.composer.longest

    def thinking(self, prompt: Prompt, budget: int | None) -> Thinking | None:
        """Return how the answer to `prompt` reasons; None for a tokenizer without the marks of reasoning."""
        marks = self.composer.layout.thinking
        opens, closes = (self.composer.tokenizer.token_to_id(mark) for mark in marks)
        if opens is None or closes is None:
            return None
        return Thinking(opens, closes, inside=prompt.echo == marks[0], budget=budget)


def _check(settings: DecoderSettings, device: torch.device) -> None:
    if settings.int8 and settings.engine == "vllm":
        raise ValueError("only the embedded engine computes in 8 bits: remove int8, or set engine to embedded")
    if settings.int8 and device.type != "cpu":
        raise ValueError(f"the decoder computes in 8 bits only on a CPU, not on {device}: remove int8")
    if settings.engine == "vllm" and find_spec("vllm") is None:
        raise ValueError("engine is vllm, which is not installed here: docs/operate.md says how to install it")


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A decoder's tokens: the ids that end an answer, and those that none may hold, the vocabulary's padding too."""

    composer: Composer
    stops: Rows[int]
    never: Rows[int]

    @property
    def text_stops(self) -> Rows[int]:
        """Return those that end an answer and have text, such as </answer>, if there are others."""
        special = special_tokens(self.composer.tokenizer)
        text = [token_id for token_id in self.stops if token_id not in special]
        return text if len(text) < len(self.stops) else []

    @classmethod
    def of(cls, folder: Path, size: int, layout: Layout) -> "TokenIds":
        """Read them from a decoder's folder; its vocabulary has `size` ids."""
        composer, stops = Composer(folder, layout), GenerationConfig.from_pretrained(folder).eos_token_id
        ends = [stops] if isinstance(stops, int) else list(stops or ())
        special = special_tokens(composer.tokenizer).difference(ends)
        return cls(composer, ends, [*sorted(special), *range(composer.vocabulary, size)])


@dataclass(frozen=True, slots=True)
class ComputeConfig:
    """What a decoder computes with: architecture, device, dtype, and tokens of context."""

    architecture: Architecture
    device: torch.device
    dtype: str
    context: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the dtype as torch's."""
        return _DTYPES[self.dtype]


Started = tuple[Engine, nn.Embedding, Adapters]  # with the decoder's embeddings


def _start_embedded(
    bundle: Bundle,
    settings: DecoderSettings,
    fusion: Fusion,
    compute: ComputeConfig,
    token_ids: TokenIds,
    grammars: Grammars,
) -> Started:
    dtype, device = compute.torch_dtype, compute.device
    glm = compute.architecture.load_decoder(bundle.part("decoder"), dtype, device, compute.context, settings.int8)
    limits = _limits(settings, glm, device)
    runner = Runner(glm, fusion, limits.max_num_seqs, limits.max_num_batched_tokens, token_ids.never)

    def load_adapter(name: str) -> Adapter:
        revision = bundle.adapters[name].revision
        return load(bundle.adapter(name), name, revision, adapted_matrices(glm.config), dtype, device)

    adapters = Adapters(load_adapter, bundle.adapters, settings.max_loras)
    core = EngineCore(runner, limits, token_ids.stops, grammars.make, adapters.get)
    return EmbeddedEngine(core), glm.embed, adapters


def _start_vllm(
    bundle: Bundle,
    settings: DecoderSettings,
    fusion: Fusion,
    compute: ComputeConfig,
    token_ids: TokenIds,
    grammars: Grammars,
) -> Started:
    def load_adapter(name: str) -> Adapter:
        return Adapter(name, bundle.adapters[name].revision, bundle.adapter(name))

    options = VllmOptions(
        dtype=compute.dtype,
        max_model_len=compute.context,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS[compute.device.type],
        kv_cache_memory_bytes=settings.kv_cache_memory_bytes or _cpu_memory(compute.device),
        enable_prefix_caching=settings.enable_prefix_caching,
        max_loras=settings.max_loras,
        max_lora_rank=max_lora_rank_of([bundle.adapter(name) for name in bundle.adapters]),
        threads=settings.threads,
    )
    adapters = Adapters(load_adapter, bundle.adapters, settings.max_loras)
    ends = EndTokens(token_ids.stops, token_ids.text_stops, token_ids.never)
    engine = VllmEngine(bundle.part("decoder"), fusion, options, ends, adapters, compute.device)
    return engine, engine.embed, adapters


def _cpu_memory(device: torch.device) -> int | None:
    """Return what the cache may take on a CPU by default; on a GPU vLLM finds out by itself."""
    return int(CPU_SHARE * available_memory()) if device.type == "cpu" else None


def _limits(settings: DecoderSettings, glm: Glm, device: torch.device) -> EngineLimits:
    """Return what fits. On a GPU, where a slot takes its memory at once, half is for slots and half for prefixes."""
    cpu, each = device.type == "cpu", num_blocks(glm.context)
    torch.cuda.empty_cache()  # what loading has left over is free too
    free = available_memory() if cpu else torch.cuda.mem_get_info(device)[0]
    memory = settings.kv_cache_memory_bytes or int((CPU_SHARE if cpu else GPU_SHARE) * free)
    fitting = memory // glm.block_bytes // (1 if cpu else 2)
    if fitting < each:
        raise ValueError(
            f"{memory / 2**20:.0f} MiB hold {fitting * BLOCK_SIZE} tokens of keys and values, and one conversation has "
            f"up to {glm.context}: raise kv_cache_memory_bytes or lower max_model_len"
        )
    sequences = settings.max_num_seqs if cpu else min(settings.max_num_seqs, fitting // each)
    total = min(fitting, sequences * each)
    tokens = settings.max_num_batched_tokens or (MAX_NUM_BATCHED_TOKENS["cpu"] if cpu else _chunk_on_gpu(glm))
    return EngineLimits(sequences, tokens, total, settings.enable_prefix_caching)


def _chunk_on_gpu(glm: Glm) -> int:
    """Return how many tokens a chunk of prompt has there: every query of a token has its own row in the mask."""
    config = glm.config
    group = int(config.num_attention_heads // config.num_key_value_heads)
    fitting = int(GPU_MASK // (group * glm.context * glm.head.weight.itemsize))
    return max(32, min(MAX_NUM_BATCHED_TOKENS["cuda"], fitting))
