"""The decoder's parts of a bundle, loaded: GLM, fusion, tokenizer and template."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.common.bundle import Bundle
from autoglm.common.int8 import quantize_int8
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.settings import DecoderSettings
from autoglm.fusion.compose import Composer
from autoglm.fusion.model import FusionModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class DecoderModel:
    """What the servicer needs: the runner of the engine, the composer, and the bundle's name."""

    bundle: Bundle
    runner: Runner
    composer: Composer
    stops: Sequence[int]
    int8: bool

    @classmethod
    def load(cls, bundle: Bundle, settings: DecoderSettings) -> "DecoderModel":
        """Open the decoder and fusion parts of `bundle`.

        Raises BundleError when one is not whole, ValueError for `int8` on a GPU.
        """
        device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if settings.int8 and device.type != "cpu":
            raise ValueError(f"the decoder computes in 8 bits on a CPU alone, not on {device}: remove int8")
        dtype = _DTYPES[settings.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
        folder = bundle.part("decoder")
        decoder = GlmForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        if settings.int8:
            quantize_int8(decoder.model.layers)
        fusion = FusionModel.from_pretrained(bundle.part("fusion"), dtype).to(device)
        composer = Composer(folder)
        context = min(decoder.config.max_position_embeddings, settings.max_model_len or 2**31)
        stops = _as_list(decoder.generation_config.eos_token_id)
        never = [i for i in _special_ids(composer) if i not in stops]
        runner = Runner(decoder, fusion, settings.max_num_seqs, context, composer.vocabulary, never)
        return cls(bundle, runner, composer, stops, settings.int8)


def _as_list(value: int | list[int] | None) -> list[int]:
    return [value] if isinstance(value, int) else list(value or ())


def _special_ids(composer: Composer) -> list[int]:
    """Return the ids of the special tokens; the model may end with one but never say another."""
    added = composer.tokenizer.get_added_tokens_decoder()
    return [token_id for token_id, token in added.items() if token.special]
