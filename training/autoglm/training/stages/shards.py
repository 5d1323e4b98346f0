"""The clean training clips of the speech stage, on disk."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoglm.common.files import replacing, write_atomically
from autoglm.speech.model import SAMPLE_RATE
from autoglm.training.data.speech import clean_clips, phonemes
from autoglm.training.progress import track


@dataclass(frozen=True, slots=True)
class Shard:
    """Clean clips on disk: int16 `samples` end to end, `offsets` [n + 1], texts and their phonemes."""

    samples: NDArray[np.int16]
    offsets: NDArray[np.int64]
    texts: list[str]
    sounds: list[str]

    @classmethod
    def load(cls, path: Path) -> "Shard":
        """Map the shard at `path` (written by `write`)."""
        index = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return cls(np.load(path, mmap_mode="r"), np.array(index["offsets"]), index["texts"], index["sounds"])

    @classmethod
    def write(cls, path: Path, count: int, seed: int) -> None:
        """Speak `count` clips of the train split into `path` (.npy), and write their index (.json)."""
        samples, texts, sounds = [], [], []
        for clip in track(clean_clips("train", count, seed), "speech clips", "clip", count):
            samples.append((clip.samples * 32767).astype(np.int16))
            texts.append(clip.text)
            sounds.append(phonemes(clip.text, clip.language, clip.voice))
        offsets = np.cumsum([0, *map(len, samples)]).tolist()
        index = json.dumps({"offsets": offsets, "texts": texts, "sounds": sounds}, ensure_ascii=False)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(samples))
        write_atomically(path.with_suffix(".json"), index.encode())

    def clip(self, index: int) -> NDArray[np.float32]:
        """Return the clean samples [n] of one clip, float32 at 16 kHz."""
        stored = self.samples[self.offsets[index] : self.offsets[index + 1]]
        return stored.astype(np.float32) / np.float32(32767)

    def batches(self, seconds: float, rng: np.random.Generator) -> Iterator[list[int]]:
        """Yield, for ever, clips of like length whose padded batch lasts at most `seconds`."""
        lengths = np.diff(self.offsets) / SAMPLE_RATE
        while True:
            batch: list[int] = []
            epoch: list[list[int]] = []
            for index in np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths))).tolist():
                longest = max(lengths[other] for other in [*batch, index])
                if batch and longest * (len(batch) + 1) > seconds:
                    epoch.append(batch)
                    batch = []
                batch.append(index)
            epoch.append(batch)
            yield from (epoch[place] for place in rng.permutation(len(epoch)))
