"""Recordings of people and photographs, in a folder that tools/real_media.sh filled from Debian and PyPI packages."""

import gzip
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from autoglm.speech.audio import decode
from autoglm.speech.model import MAX_SECONDS, SAMPLE_RATE, normalize
from autoglm.training.data.catalog import Language
from autoglm.training.data.speech import Script

SPHINX = Path("usr/share/pocketsphinx/test/data")
PROMPTS = Path("usr/share/asterisk/sounds/en_US_f_Allison")
MISNAMED = {"pls-try-call-later": "please-try-call-later"}  # by the texts, and what the recording is called
PROMPT_TEXTS = Path("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
AISHELL = Path("s3tokenizer/assets")
SOURCES = {
    "novel": "a novel, read aloud (LibriVox, in pocketsphinx-testdata)",
    "cards": "names of playing cards (pocketsphinx-testdata)",
    "robot": "a robot's command; a row of digits (pocketsphinx-testdata)",
    "prompts": "telephone prompts, 8 kHz, all of whose words training uses (asterisk-core-sounds-en)",
    "news": "newspaper sentences in Mandarin (AISHELL-1, in s3tokenizer)",
}
ROBOT = {  # by goforward.gram and by TIDIGITS' file names (z is zero)
    "goforward.raw": "go forward ten meters",
    "tidigits/dhd.2934z.raw": "two nine three four zero",
}
NEWS = {  # the published transcript of AISHELL-1, which the package does not carry
    "BAC009S0764W0121.wav": "甚至出现交易几乎停滞的情况",
    "BAC009S0764W0122.wav": "一二线城市虽然也处于调整中",
}
PHOTOGRAPHS = {
    "temple": Path("sklearn/datasets/images/china.jpg"),
    "flower": Path("sklearn/datasets/images/flower.jpg"),
    "astronaut": Path("skimage/data/astronaut.png"),
    "cat": Path("skimage/data/chelsea.png"),
    "cup of coffee": Path("skimage/data/coffee.png"),
    "rocket": Path("skimage/data/rocket.jpg"),
}
_SPHINX_LINE = re.compile(r"<s> (.+?) *</s> \((.+)\)")
_REMARK = re.compile(r"\[.*?\]|<.*?>")


class MediaError(ValueError):
    """A recording or photograph is not in the folder; the message names it and says how to fetch it."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What a person says: a key of SOURCES, the file's name, the words, and float32 samples [n] at 16 kHz."""

    source: str
    name: str
    language: Language
    text: str
    samples: NDArray[np.float32]


def recordings(folder: Path) -> list[Recording]:
    """Return every recording in `folder`, source by source. Raises MediaError when one is not there."""
    readers: dict[str, tuple[Language, Callable[[Path], Iterator[tuple[Path, str]]]]] = {
        "novel": ("en", lambda root: _transcribed(root, "librivox/transcription")),
        "cards": ("en", lambda root: _transcribed(root, "cards/cards.transcription")),
        "robot": ("en", lambda root: ((SPHINX / name, text) for name, text in ROBOT.items())),
        "prompts": ("en", _prompts),
        "news": ("zh", lambda root: ((AISHELL / name, text) for name, text in NEWS.items())),
    }
    return [
        Recording(source, path.name, language, text, _samples(_there(folder, path)))
        for source, (language, read) in readers.items()
        for path, text in read(folder)
    ]


def photographs(folder: Path) -> dict[str, bytes]:
    """Return the image files of PHOTOGRAPHS in `folder`. Raises MediaError when one is not there."""
    return {name: _there(folder, path).read_bytes() for name, path in PHOTOGRAPHS.items()}


def _there(folder: Path, path: Path) -> Path:
    if not (folder / path).is_file():
        raise MediaError(f"{folder / path} is not there; fetch it with: sh tools/real_media.sh {folder}")
    return folder / path


def _transcribed(folder: Path, index: str) -> Iterator[tuple[Path, str]]:
    """Yield the recordings of one of pocketsphinx's transcript files: `<s> two words </s> (name)`."""
    path = SPHINX / index
    for text, name in _SPHINX_LINE.findall(_there(folder, path).read_text(encoding="utf-8")):
        yield path.with_name(f"{name}.wav"), text


def _prompts(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the telephone prompts (`name: Text [remark]`) that have no word which training clips never use."""
    script = Script.of("train")
    known = set(normalize(" ".join((*script.sentences["en"], *script.pieces["en"]))).split())
    with gzip.open(_there(folder, PROMPT_TEXTS), "rt", encoding="utf-8") as lines:
        for line in lines:
            name, _, text = _REMARK.sub("", line).partition(": ")
            if (said := set(normalize(text).split())) and said <= known:
                yield PROMPTS / f"{MISNAMED.get(name, name)}.wav", text.strip()


def _samples(path: Path) -> NDArray[np.float32]:
    if path.suffix != ".raw":
        return decode(path.read_bytes(), MAX_SECONDS)
    samples, _ = soundfile.read(
        path, dtype="float32", samplerate=SAMPLE_RATE, channels=1, format="RAW", subtype="PCM_16", endian="LITTLE"
    )
    return np.asarray(samples, dtype=np.float32)
