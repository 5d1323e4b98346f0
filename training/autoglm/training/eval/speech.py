"""How well the speech encoder transcribes held-out sentences."""

from dataclasses import dataclass

import jiwer
import numpy as np
from numpy.typing import NDArray

from autoglm.speech.model import SpeechModel, normalize
from autoglm.training.data.catalog import LANGUAGES, Language, Split
from autoglm.training.data.speech import clips

HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True, slots=True)
class HeldOutClips:
    """Fixed clips [n] with what was said."""

    samples: list[NDArray[np.float32]]
    texts: list[str]
    languages: list[Language]

    @classmethod
    def draw(cls, voices: Split, said: Split, count: int) -> "HeldOutClips":
        """Return `count` whole sentences of the templates of `said`, spoken by the voices of `voices`."""
        every = list(clips(voices, count, HELD_OUT_SEED, said=said, sentences_only=True))
        return cls([c.samples for c in every], [c.text for c in every], [c.language for c in every])

    def error_rates(self, model: SpeechModel) -> dict[str, float]:
        """Return character error rates (all, per language) and the share of sentences wholly right."""
        model.network.eval()
        batches = (self.samples[start : start + 8] for start in range(0, len(self.samples), 8))
        heard = [encoded.transcript for batch in batches for encoded in model.encode(batch)]
        model.network.train()
        said = [normalize(text) for text in self.texts]
        scores = {"cer": float(jiwer.cer(said, heard))}
        for language in LANGUAGES:
            pairs = [(s, h) for s, h, of in zip(said, heard, self.languages, strict=True) if of == language]
            scores[f"cer_{language}"] = float(jiwer.cer([s for s, _ in pairs], [h for _, h in pairs]))
        return scores | {"exact": sum(s == h for s, h in zip(said, heard, strict=True)) / len(said)}
