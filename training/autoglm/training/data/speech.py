"""Spoken commands: espeak-ng in many voices, with noise, a room and a microphone's gain.

espeak-ng comes from the PyPI package `espeakng_loader` (library and data, no system package). Its
state is global: use this module from one thread. Train and held-out clips differ by voice variant
and by sentence template, never by shuffling.
"""

import _ctypes
import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import espeakng_loader
import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve, resample_poly

from autoglm.training.data.catalog import APPS, COLOURS, LANGUAGES, REGIONS, SETTINGS, Language, Split
from autoglm.training.data.lexicon import LEXICON, TYPED
from autoglm.training.data.talk import TOPICS
from autoglm.training.data.wording import TEMPLATES, as_heard, sentences, templates

SAMPLE_RATE = 16_000
SILENCE = (0.03, 0.25)
NOISE_DB = (8.0, 35.0)
NOISY, REVERBERANT = 0.8, 0.4
SENTENCE_SHARE, SALAD_SHARE = 0.45, 0.45

# espeak-ng 1.52: both Mandarin voices take hanzi; 1.51's `cmn` read them with English sounds.
ACCENTS: dict[Language, tuple[str, ...]] = {
    "zh": ("sit/cmn-Latn-pinyin",),
    "en": ("gmw/en-US", "gmw/en-US", "gmw/en", "gmw/en-GB-x-rp", "gmw/en-GB-scotland", "gmw/en-US-nyc"),
}
# The dictionary has no entry for 哪儿, takes 把儿童 for 把儿 and 童, and would spell both out in English.
SPOKEN = {"哪儿": "na3儿", "把儿童": "ba3儿童"}

VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": (
        "m1", "m2", "m3", "m5", "m6", "m8", "f1", "f2", "f3", "f5", "Alex", "Alicia", "Andrea", "Annie", "Denis",
        "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Reed", "Storm",
        "adam", "anika", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "gustave",
        "ian", "iven", "iven3", "john", "kaukovalta", "klatt", "klatt3", "marcelo", "max", "michel", "miguel",
        "mike2", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "sandro", "shelby", "steph", "travis",
    ),
    "heldout": ("m4", "m7", "f4", "Andy", "linda", "robert", "steph3", "victor"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Voice:
    """How espeak speaks: its voice (`gmw/en-US+m1`), words a minute, and pitch (0–100)."""

    name: str
    rate: int
    pitch: int


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance: float32 samples [n] at 16 kHz, the sentence as written, and who speaks."""

    samples: NDArray[np.float32]
    text: str
    language: Language
    voice: str


class Espeak:
    """The espeak-ng library, freshly loaded: the same calls in the same order give the same samples."""

    _live: "Espeak | None" = None
    _SYNCHRONOUS, _DONT_EXIT = 2, 0x8000
    _UTF8, _IPA = 1, 2
    _RATE, _VOLUME, _PITCH = 1, 2, 3
    _Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def __init__(self) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        data = os.path.dirname(espeakng_loader.get_data_path()).encode()
        self.rate: int = self._library.espeak_Initialize(self._SYNCHRONOUS, 0, data, self._DONT_EXIT)
        if self.rate <= 0:
            raise RuntimeError("espeak-ng found no voice data; reinstall the package espeakng_loader")
        # Breath noise draws from espeak's own generator, seeded by the clock, and from libc's.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)
        self._chunks: list[NDArray[np.int16]] = []
        self._callback = self._Callback(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    @classmethod
    def live(cls) -> "Espeak":
        """Return the loaded library, loading it on first use."""
        cls._live = cls._live or cls.fresh()
        return cls._live

    @classmethod
    def fresh(cls) -> "Espeak":
        """Unload the library and load it again: flutter and breath noise start over."""
        if cls._live is not None:
            cls._live._library.espeak_Terminate()
            _ctypes.dlclose(cls._live._library._handle)
        cls._live = cls()
        return cls._live

    def _receive(self, wave: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int | None) -> int:
        if wave and count > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0

    def _select(self, name: str) -> None:
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {name!r}")

    def say(self, text: str, voice: Voice) -> NDArray[np.float32]:
        """Return `text` spoken by `voice`, float32 in [-1, 1] at `self.rate` Hz."""
        self._select(voice.name)
        for parameter, value in ((self._RATE, voice.rate), (self._VOLUME, 60), (self._PITCH, voice.pitch)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        spoken = text.encode()
        self._library.espeak_Synth(spoken, ctypes.c_size_t(len(spoken) + 1), 0, 1, 0, self._UTF8, None, None)
        return np.concatenate(self._chunks).astype(np.float32) / np.float32(32768)

    def phonemes(self, text: str, name: str) -> str:
        """Return the IPA phonemes that the voice `name` gives `text`, clauses joined by a space."""
        self._select(name)
        buffer = ctypes.create_string_buffer(text.encode())
        rest = ctypes.c_void_p(ctypes.addressof(buffer))
        clauses: list[str] = []
        while rest.value:
            clauses.append(self._library.espeak_TextToPhonemes(ctypes.byref(rest), self._UTF8, self._IPA).decode())
        return " ".join(clauses)


def _spoken(text: str) -> str:
    for written, said in SPOKEN.items():
        text = text.replace(written, said)
    return text


def phonemes(text: str, language: Language, voice: str | None = None) -> str:
    """Return the IPA phonemes of `text` as `voice` (by default the language's first accent) says them."""
    return Espeak.live().phonemes(_spoken(text), voice or ACCENTS[language][0])


def draw_voice(language: Language, split: Split, rng: np.random.Generator) -> Voice:
    """Draw a voice of `split`: accent, variant, rate and pitch."""
    accent, variant = rng.choice(ACCENTS[language]), rng.choice(VARIANTS[split])
    return Voice(f"{accent}+{variant}", int(rng.integers(120, 211)), int(rng.integers(25, 76)))


def speak(text: str, voice: Voice, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return clean samples [n] at 16 kHz of `text`, with a little silence before and after."""
    espeak = Espeak.live()
    wave = resample_poly(espeak.say(_spoken(text), voice), SAMPLE_RATE // 50, espeak.rate // 50)
    loud = np.flatnonzero(np.abs(wave) > 0.003)
    wave = wave[loud[0] : loud[-1] + 1] if len(loud) else wave
    before, after = (int(seconds * SAMPLE_RATE) for seconds in rng.uniform(*SILENCE, 2))
    return np.pad(wave, (before, after)).astype(np.float32)


def augment(samples: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return `samples` [n] as a phone may hear them: a room, noise at 8–35 dB, another gain."""
    if rng.random() < REVERBERANT:
        samples = _reverberate(samples, rng)
    if rng.random() < NOISY:
        samples = samples + _noise(samples, rng)
    peak = float(np.abs(samples).max())
    return (samples * (10 ** rng.uniform(-1.3, -0.05) / max(peak, 1e-6))).astype(np.float32)


def _reverberate(samples: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Convolve with a direct sound and exponentially decaying noise (60 dB in 0.1–0.5 s)."""
    decay = rng.uniform(0.1, 0.5)
    time = np.arange(int(decay * SAMPLE_RATE)) / SAMPLE_RATE
    response = rng.standard_normal(len(time)) * np.exp(-6.9 * time / decay)
    response *= rng.uniform(0.1, 0.6) / np.linalg.norm(response)
    response[0] = 1.0
    return np.asarray(fftconvolve(samples, response)[: len(samples)], dtype=np.float32)


def _noise(samples: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return white or low-heavy noise [n], 8–35 dB below the speech."""
    noise = rng.standard_normal(len(samples)).astype(np.float32)
    if rng.random() < 0.5:
        noise = np.asarray(fftconvolve(noise, np.exp(-np.arange(64) / rng.uniform(1, 16)), "same"), dtype=np.float32)
    level = np.sqrt(np.mean(samples**2)) * 10 ** (-rng.uniform(*NOISE_DB) / 20)
    return noise * np.float32(level / (np.sqrt(np.mean(noise**2)) + 1e-9))


def room(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return 1 to 4 s [n] at 16 kHz of a room in which nobody speaks: hiss, rumble, perhaps a tone of 50 to 400 Hz."""
    n = int(rng.uniform(1, 4) * SAMPLE_RATE)
    sound = _noise(np.ones(n, dtype=np.float32), rng)
    if rng.random() < 0.5:
        tone = np.sin(2 * np.pi * rng.uniform(50, 400) * np.arange(n) / SAMPLE_RATE).astype(np.float32)
        sound = sound + tone * np.float32(rng.uniform(0.1, 1) * np.abs(sound).max())
    return sound * np.float32(10 ** rng.uniform(-2.5, -0.3) / np.abs(sound).max())


def synthesize(text: str, language: Language, voice: Voice, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return float32 samples [n] at 16 kHz of `text` in `voice`, augmented.

    Raises:
        ValueError: `voice` does not speak `language`, or espeak-ng lacks it (an unknown variant it ignores).
    """
    if voice.name.split("+")[0] not in ACCENTS[language]:
        raise ValueError(f"voice {voice.name!r} does not speak {language!r}")
    return augment(speak(text, voice, rng), rng)


def words(language: Language) -> tuple[str, ...]:
    """Return the names of the closed world and the common words of `language`."""
    named = [name[language] for table in (APPS, COLOURS, SETTINGS) for name in table.values()]
    regions = [name[language] for name in REGIONS.values()]
    return (*named, *regions, *TYPED[language], *LEXICON[language])


@dataclass(frozen=True, slots=True)
class Script:
    """What may be said in each language, as it is heard: the sentences of a split, and words and parts of templates."""

    sentences: dict[Language, tuple[str, ...]]
    pieces: dict[Language, tuple[str, ...]]

    @classmethod
    def of(cls, split: Split) -> Self:
        """Return the script of the sentence templates of `split`."""
        every = sentences(split)
        talk = {language: _talk(language, split) for language in LANGUAGES}
        return cls(
            {each: _heard([*(text for of, text in every if of == each), *talk[each]]) for each in LANGUAGES},
            {each: _heard([*words(each), *_fragments(each, split), *talk[each]]) for each in LANGUAGES},
        )

    def draw(self, language: Language, rng: np.random.Generator, sentences_only: bool) -> str:
        """Draw a sentence, two to four pieces in any order (so that no wording is learned by heart), or a word."""
        kind = rng.random()
        if sentences_only or kind < SENTENCE_SHARE:
            return str(rng.choice(self.sentences[language]))
        if kind < SENTENCE_SHARE + SALAD_SHARE:
            pieces = rng.choice(self.pieces[language], int(rng.integers(2, 5)))
            return ("" if language == "zh" else " ").join(pieces)
        return str(rng.choice(words(language)))


def _heard(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(as_heard, texts))


def _talk(language: Language, split: Split) -> tuple[str, ...]:
    """Return what is said to the assistant in `split` when no screen is meant."""
    return tuple(text for by_language in TOPICS.values() for text in by_language[language].pool(split))


def _fragments(language: Language, split: Split) -> list[str]:
    """Return what the templates of `split` say around their slots, without punctuation."""
    said = {
        piece.strip(" ?") for intent in TEMPLATES for text in templates(intent, language, split)
        for piece in text.split("{}")
    }  # fmt: skip
    return sorted(said - {""})


def clean_clips(
    split: Split, n: int, seed: int, *, said: Split | None = None, sentences_only: bool = False
) -> Iterator[Clip]:
    """Yield `n` clips before augmentation, as `clips` does."""
    rng = np.random.default_rng(seed)
    script = Script.of(said or split)
    Espeak.fresh()
    for _ in range(n):
        language: Language = LANGUAGES[int(rng.integers(len(LANGUAGES)))]
        voice, text = draw_voice(language, split, rng), script.draw(language, rng, sentences_only)
        yield Clip(speak(text, voice, rng), text, language, voice.name)


def clips(
    split: Split, n: int, seed: int, *, said: Split | None = None, sentences_only: bool = False
) -> Iterator[Clip]:
    """Yield `n` augmented clips; the same seed gives the same clips.

    Every call loads espeak anew, so two of these iterators must not run side by side.

    Args:
        split: whose voices speak (and whose templates, unless `said` names the other split's).
        n: number of clips.
        seed: of every draw.
        said: whose sentence templates are spoken.
        sentences_only: whole sentences, no single words.
    """
    rng = np.random.default_rng([seed, 1])
    for clip in clean_clips(split, n, seed, said=said, sentences_only=sentences_only):
        yield Clip(augment(clip.samples, rng), clip.text, clip.language, clip.voice)
