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

from autoglm.speech.transcript import SpokenSegment, SpokenToken, text_of

SAMPLE_RATE = 16_000
MEL_HOP = 160
FRAMES_PER_STATE = 2
STACK = 4
SAMPLES_PER_TOKEN = MEL_HOP * FRAMES_PER_STATE * STACK
MAX_SECONDS = 30
BLANK = 0
# What a model with a CTC head reads at once. Of the sentences that it was trained on, 95 of 100 are shorter; of 30 s it
# gets every fourth character wrong.
SENTENCE_SECONDS = 5
STATE_SECONDS = MEL_HOP * FRAMES_PER_STATE / SAMPLE_RATE
# Without a character for so long, the next one begins another segment.
_PAUSE_SECONDS = 1.0
_LONGEST_TOKEN_SECONDS = 0.3
# Noise is heard as a character or two, and with little confidence.
_DOUBTFUL_LOGPROB, _DOUBTFUL_CHARACTERS = -0.5, 2

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

    def tokens(self, logprobs: Tensor) -> list[SpokenToken]:
        """Return the greedy CTC path through log probabilities [states, characters]: repeats merged, then blanks
        dropped. A character is heard until the next one, or for 0.3 s."""
        best, path = logprobs.max(-1)
        runs, position = [], 0
        for index, run in groupby(path.tolist()):
            first, position = position, position + len(list(run))
            if index != BLANK:
                runs.append((index, first, float(best[first:position].max())))
        ends = [first for _, first, _ in runs[1:]] + [position]
        return [
            SpokenToken(
                index,
                self.characters[index],
                first * STATE_SECONDS,
                min(end * STATE_SECONDS, first * STATE_SECONDS + _LONGEST_TOKEN_SECONDS),
                logprob,
            )
            for (index, first, logprob), end in zip(runs, ends, strict=False)
        ]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One clip as the decoder sees it.

    `tokens` has shape [ceil(samples / 1280), 4 · width]: each token is four consecutive 50 Hz states.
    `segments` are what is said, with times from the clip's start; none if the model has no CTC head.
    """

    tokens: Tensor
    segments: Sequence[SpokenSegment]

    @property
    def transcript(self) -> str:
        """What is said."""
        return text_of(self.segments)


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

    @property
    def piece_seconds(self) -> int:
        """The longest clip that it hears well; longer recordings are cut."""
        return SENTENCE_SECONDS if self.transcribes else MAX_SECONDS

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
        heard = [[]] * len(samples) if logits is None else map(self._segments, logits.float().log_softmax(-1), lengths)
        return [
            Encoded(clip_states[:length].reshape(-1, self.width), segments)
            for clip_states, segments, length in zip(states, heard, lengths.tolist(), strict=True)
        ]

    def _segments(self, logprobs: Tensor, length: Tensor) -> list[SpokenSegment]:
        """Return what is said by log probabilities [states, characters], of which the first `length` are the clip's."""
        logprobs = logprobs[: int(length)].cpu()
        said: list[list[SpokenToken]] = []
        for token in self.vocabulary.tokens(logprobs):
            if said and token.start - said[-1][-1].start < _PAUSE_SECONDS:
                said[-1].append(token)
            elif token.text.strip():
                said.append([token])
        segments = [SpokenSegment(tokens, _silence(logprobs, tokens)) for tokens in said]
        return [segment for segment in segments if not _is_doubtful(segment)]


def _silence(logprobs: Tensor, tokens: Sequence[SpokenToken]) -> float:
    """Return the probability of nothing but blanks while `tokens` are heard."""
    first, last = (round(at / STATE_SECONDS) for at in (tokens[0].start, tokens[-1].end))
    return float(logprobs[first:last, BLANK].sum().exp())


def _is_doubtful(segment: SpokenSegment) -> bool:
    return len(segment.text) <= _DOUBTFUL_CHARACTERS and segment.avg_logprob < _DOUBTFUL_LOGPROB


def pad_mels(mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mels [80, F_i] as one zero-padded batch [B, 80, max F], and their lengths in states [B]."""
    batch = nn.utils.rnn.pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)
    return batch, torch.tensor([mel.shape[1] // FRAMES_PER_STATE for mel in mels])
