"""The speech encoder: Whisper's encoder on the true length of the audio, and a CTC head for the transcript.

16 kHz samples become log-mel frames (100 a second), encoder states (50 a second) and stacked tokens (12.5 a second).
The transcript is decoded greedily from the CTC head on the same states, so it costs one matrix product. The encoder
starts from the published Whisper-tiny.en weights (OpenAI, MIT). The folder of a published Whisper works too; it has no
such head, so there are tokens but no transcript.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperPreTrainedModel

SAMPLE_RATE = 16_000
MEL_HOP = 160
FRAMES_PER_STATE = 2
STACK = 4
SAMPLES_PER_TOKEN = MEL_HOP * FRAMES_PER_STATE * STACK
MAX_SECONDS = 30
BLANK = 0

_UNSPOKEN = re.compile(r"[^a-z0-9\u4e00-\u9fff ]")


def normalize(text: str) -> str:
    """Return `text` as the CTC head writes it: lower-case, no punctuation, single spaces."""
    return " ".join(_UNSPOKEN.sub("", text.lower()).split())


def load_config(folder: str | Path) -> WhisperConfig:
    """Read `config.json`; `vocab_size` is the number of characters of the CTC head, 0 for a published Whisper."""
    config = WhisperConfig.from_pretrained(folder)
    if SpeechEncoder.__name__ not in (config.architectures or ()):
        config.vocab_size = 0
    return config


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The characters of the CTC head; the id of a character is its index, id 0 is the blank."""

    characters: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Return the vocabulary of every character in the normalized `texts`."""
        return cls(("<blank>", *sorted(set("".join(map(normalize, texts))))))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `vocab.json` (character → id) from `folder`."""
        ids: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        return cls(tuple(sorted(ids, key=ids.__getitem__)))

    def save(self, folder: Path) -> None:
        """Write `vocab.json` into `folder`."""
        ids = {character: index for index, character in enumerate(self.characters)}
        (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Return the ids of the normalized `text`, without characters that are not in the vocabulary."""
        ids = {character: index for index, character in enumerate(self.characters)}
        return [ids[character] for character in normalize(text) if character in ids]

    def decode(self, path: Sequence[int]) -> str:
        """Return the text of a CTC path: repeats merged, then blanks dropped."""
        return normalize("".join(self.characters[index] for index, _ in groupby(path) if index != BLANK))


@dataclass(frozen=True, slots=True)
class Encoded:
    """One clip as the decoder sees it.

    `tokens` has shape [ceil(samples / 1280), 4 · width]: each token is four consecutive 50 Hz states.
    `transcript` is empty if the model has no CTC head.
    """

    tokens: Tensor
    transcript: str


class SpeechEncoder(WhisperPreTrainedModel):  # type: ignore[misc]
    """Whisper's encoder without its fixed 30 s, and the CTC head (`config.vocab_size` characters; none for 0)."""

    config: WhisperConfig
    main_input_name = "mel"

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.encoder = WhisperEncoder(config)
        if config.vocab_size:
            self.ctc = nn.Linear(config.d_model, config.vocab_size)
        self.post_init()

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode a right-padded batch; the result of a clip does not depend on the others.

        Args:
            mel: [B, 80, F] log-mel frames, F even; zeros after a clip's end, as its own convolution would pad.
            lengths: [B] number of 50 Hz states (frames / 2) of each clip without padding.

        Returns:
            The states [B, F/2, width] and the CTC logits [B, F/2, characters], None without a head. Rows after the
            end of a clip are undefined.
        """
        hidden = nn.functional.gelu(self.encoder.conv1(mel))
        hidden = nn.functional.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        steps = torch.arange(hidden.shape[1], device=hidden.device)
        hidden = hidden + self.encoder.embed_positions(steps)
        visible = (steps < lengths[:, None])[:, None, None, :].expand(-1, 1, len(steps), -1)
        for layer in self.encoder.layers:
            hidden = layer(hidden, visible)
        states = self.encoder.layer_norm(hidden)
        return states, self.ctc(states) if self.config.vocab_size else None


class SpeechModel:
    """Features, network and vocabulary: from samples to tokens and transcript."""

    def __init__(self, network: SpeechEncoder, features: WhisperFeatureExtractor, vocabulary: Vocabulary) -> None:
        self.network = network
        self.features = features
        self.vocabulary = vocabulary

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Load the speech part of a bundle for inference in `dtype` (float32 or bfloat16).

        Raises:
            OSError: `folder` lacks a file of the part.
        """
        config = load_config(folder)
        network = SpeechEncoder.from_pretrained(folder, config=config, dtype=dtype).eval()
        vocabulary = Vocabulary.load(Path(folder)) if config.vocab_size else Vocabulary(())
        return cls(network, WhisperFeatureExtractor.from_pretrained(folder), vocabulary)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors, preprocessor_config.json and vocab.json into `folder`."""
        self.network.save_pretrained(folder)
        self.features.save_pretrained(folder)
        self.vocabulary.save(Path(folder))

    @property
    def width(self) -> int:
        """The width of a token."""
        return STACK * int(self.network.config.d_model)

    @property
    def transcribes(self) -> bool:
        """Whether there is a CTC head, and therefore a transcript."""
        return bool(self.vocabulary.characters)

    def mel(self, samples: NDArray[np.float32]) -> Tensor:
        """Return Whisper's log-mel frames [80, F] of one clip [n] at 16 kHz, F a multiple of 8.

        The clip is padded with silence to a multiple of a token, not to 30 s. Whisper clamps the spectrum to eight
        decades below the loudest frame of the clip.
        """
        padded = np.pad(samples, (0, -len(samples) % SAMPLES_PER_TOKEN))
        features = self.features(padded, sampling_rate=SAMPLE_RATE, padding="do_not_pad", return_tensors="np")
        return torch.from_numpy(features["input_features"][0])

    @torch.inference_mode()
    def encode(self, samples: Sequence[NDArray[np.float32]]) -> list[Encoded]:
        """Encode clips [n] of 16 kHz mono float32 samples, at most 30 s each, as one batch."""
        mel, lengths = pad_mels([self.mel(clip) for clip in samples])
        device = self.network.device
        states, logits = self.network(mel.to(device, self.network.dtype), lengths.to(device))
        paths = [[]] * len(samples) if logits is None else logits.argmax(-1).tolist()
        return [
            Encoded(clip_states[:length].reshape(-1, self.width), self.vocabulary.decode(path[:length]))
            for clip_states, path, length in zip(states, paths, lengths.tolist(), strict=True)
        ]


def pad_mels(mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mels [80, F_i] as one zero-padded batch [B, 80, max F], and their lengths in states [B]."""
    batch = nn.utils.rnn.pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)
    return batch, torch.tensor([mel.shape[1] // FRAMES_PER_STATE for mel in mels])
