"""Fusion and decoder as one module: as they are trained together, initialised and saved."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.glm import GlmConfig, GlmForCausalLM

from autoglm.fusion.gcma.init import initialise, initialise_positions
from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion
from autoglm.training.fuse_batch import Additions, fuse_batch
from autoglm.training.stages import tokenizer
from autoglm.training.stages.token_batches import TokenBatch

EMBEDDING_STD = 1.0
# Of an answer where the request sets no max_tokens: a small model that writes free JSON or text can repeat itself until
# its context is full. Its right answers have up to some 50 tokens; calls and JSON that a grammar forces take more.
MAX_NEW_TOKENS = 512


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of the decoder; recipes/nano.yaml explains each field."""

    hidden: int
    layers: int
    context: int


class FusionDecoder(nn.Module):
    """Fusion and decoder side by side, as they are trained and saved."""

    def __init__(self, fusion: GcmaFusion, decoder: GlmForCausalLM) -> None:
        super().__init__()
        self.fusion, self.decoder = fusion, decoder

    @classmethod
    def fresh(cls, config: DecoderConfig, vocabulary: int, seed: int) -> "FusionDecoder":
        """Return an untrained model, initialised by `seed`."""
        torch.manual_seed(seed)
        decoder = GlmForCausalLM(glm_config(config, vocabulary))
        model = cls(GcmaFusion(GcmaConfig(text_width=config.hidden)), decoder)
        model.initialise()
        return model

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw every weight anew, from torch's global generator."""
        initialise(self.decoder)
        initialise(self.fusion)
        nn.init.normal_(self.decoder.model.embed_tokens.weight, std=EMBEDDING_STD)
        for layer in self.decoder.model.layers:  # an untrained layer adds nothing: a token is itself to the end
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        initialise_positions(self.fusion)

    @classmethod
    def saved(cls, folder: Path) -> "FusionDecoder":
        """Return what `save` wrote into `folder`, in float32."""
        decoder = GlmForCausalLM.from_pretrained(folder / "decoder", dtype=torch.float32, local_files_only=True)
        return cls(GcmaFusion.from_pretrained(folder / "fusion"), decoder)

    def forward(self, batch: "TokenBatch") -> tuple[Tensor, Additions | None]:
        """Return logits [N, vocabulary] for the N tokens that are learned, and what the fusion added."""
        embeddings = self.decoder.model.embed_tokens(batch.token_ids)
        fused, added = fuse_batch(self.fusion, embeddings, batch.fusion)
        hidden = self.decoder.model(inputs_embeds=fused, use_cache=False).last_hidden_state
        return self.decoder.lm_head(hidden[:, :-1][batch.learned]), added


def glm_config(config: DecoderConfig, vocabulary: int) -> GlmConfig:
    """Return the decoder's config: GLM as in transformers, at the size of `config`."""
    return GlmConfig(
        vocab_size=-(-vocabulary // 64) * 64,
        hidden_size=config.hidden,
        intermediate_size=3 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.hidden // 64,
        num_key_value_heads=max(1, config.hidden // 128),
        head_dim=64,
        max_position_embeddings=config.context,
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def save(model: FusionDecoder, folder: Path) -> None:
    """Write both parts in Hugging Face format, bf16, with the tokenizer. The decoder becomes bf16."""
    model.fusion.save_pretrained(folder / "fusion")
    decoder = model.decoder
    words = tokenizer.build(folder / "decoder")
    stops = [words.token_to_id(text) for text in tokenizer.STOPS]
    decoder.generation_config.eos_token_id = stops
    decoder.generation_config.max_new_tokens = MAX_NEW_TOKENS
    decoder.config.eos_token_id = stops
    decoder.to(torch.bfloat16).save_pretrained(folder / "decoder")
