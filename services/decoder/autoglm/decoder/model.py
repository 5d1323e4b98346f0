"""The decoder's parts of a bundle, loaded: GLM, fusion, tokenizer and template."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.common.bundle import Bundle
from autoglm.common.memory import available_memory
from autoglm.decoder.engine.cache import blocks
from autoglm.decoder.engine.content import BLOCK
from autoglm.decoder.engine.engine import Limits
from autoglm.decoder.engine.glm import Glm
from autoglm.decoder.engine.grammar import Grammars
from autoglm.decoder.engine.lora import Adapter, Adapters, load
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sequence import Thinking
from autoglm.decoder.settings import DecoderSettings
from autoglm.fusion.compose import Composer, Prompt
from autoglm.fusion.model import FusionModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPU_SHARE, GPU_SHARE = 0.25, 0.9  # of the memory that is free, for the cache, when nothing else is said


@dataclass(frozen=True, slots=True)
class DecoderModel:
    """What the servicer needs: the runner of the engine and its limits, the composer, and the bundle's name."""

    bundle: Bundle
    runner: Runner
    limits: Limits
    composer: Composer
    grammars: Grammars
    adapters: Adapters
    stops: Sequence[int]
    int8: bool

    @classmethod
    def load(cls, bundle: Bundle, settings: DecoderSettings) -> "DecoderModel":
        """Open the decoder and fusion parts of `bundle`.

        Raises BundleError when one is not whole, ValueError for `int8` on a GPU and for a cache in which not even one
        conversation fits.
        """
        device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if settings.int8 and device.type != "cpu":
            raise ValueError(f"the decoder computes in 8 bits on a CPU alone, not on {device}: remove int8")
        dtype = _DTYPES[settings.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
        folder = bundle.part("decoder")
        source = GlmForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        context = min(source.config.max_position_embeddings, settings.max_model_len or 2**31)
        glm = Glm(source, context, settings.int8)
        fusion = FusionModel.from_pretrained(bundle.part("fusion"), dtype).to(device)
        composer = Composer(folder)
        stops = _as_list(source.generation_config.eos_token_id)
        never = [i for i in _special_ids(composer) if i not in stops]
        limits = _limits(settings, glm.to(device), device)
        runner = Runner(glm, fusion, limits.sequences, composer.vocabulary, never)
        grammars = Grammars(folder / "tokenizer.json", stops)

        def adapter(name: str) -> Adapter:
            revision = bundle.adapters[name].revision
            return load(bundle.adapter(name), name, revision, glm.shapes(), dtype, device)

        adapters = Adapters(adapter, bundle.adapters, settings.max_loras)
        return cls(bundle, runner, limits, composer, grammars, adapters, stops, settings.int8)

    def thinking(self, prompt: Prompt, budget: int | None) -> Thinking | None:
        """Return where the answer to `prompt` stands in its reasoning; None for a tokenizer without marks for it."""
        opens, closes = (self.composer.tokenizer.token_to_id(mark) for mark in ("<think>", "</think>"))
        if opens is None or closes is None:
            return None
        return Thinking(opens, closes, inside=prompt.echo == "<think>", budget=budget)


def _limits(settings: DecoderSettings, glm: Glm, device: torch.device) -> Limits:
    """Return what fits. On a GPU, where a slot takes its memory at once, half is for slots and half for prefixes."""
    cpu, each = device.type == "cpu", blocks(glm.context)
    free = available_memory() if cpu else torch.cuda.mem_get_info(device)[0]
    memory = settings.kv_cache_memory_bytes or int((CPU_SHARE if cpu else GPU_SHARE) * free)
    fitting = memory // glm.block_bytes // (1 if cpu else 2)
    if fitting < each:
        raise ValueError(
            f"{memory / 2**20:.0f} MiB hold {fitting * BLOCK} tokens of keys and values, and one conversation has up "
            f"to {glm.context}: raise kv_cache_memory_bytes or lower max_model_len"
        )
    sequences = settings.max_num_seqs if cpu else min(settings.max_num_seqs, fitting // each)
    total = min(fitting, sequences * each)
    return Limits(sequences, settings.max_num_batched_tokens, total, settings.enable_prefix_caching)


def _as_list(value: int | list[int] | None) -> list[int]:
    return [value] if isinstance(value, int) else list(value or ())


def _special_ids(composer: Composer) -> list[int]:
    """Return the ids of the special tokens; the model may end with one but never say another."""
    added = composer.tokenizer.get_added_tokens_decoder()
    return [token_id for token_id, token in added.items() if token.special]
