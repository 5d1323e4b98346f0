"""What benchmarks ask: text, drawn screens and spoken sentences, every request different from the others.

Drawing and speaking come from the training package, whose dependencies are in the `train` extra.
"""

import io
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoglm.cli.api import audio_bytes_part, image_bytes_part

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Messages = Sequence[Mapping[str, Any]]

LEAST_SPEECH = 3.0  # seconds
DICTATION = {"zh": "转写这段语音。", "en": "Transcribe this recording."}


class ToolsMissing(Exception):
    """The packages that draw and speak are not installed; the message says what to do."""


def texts(seed: int) -> Iterator[Messages]:
    """Yield conversations of about 128 tokens without media."""
    import numpy as np

    from autoglm.training.data.catalog import LANGUAGES
    from autoglm.training.data.prompts import FORMATS, HEADS
    from autoglm.training.data.talk import TOPICS, draw_sum

    rng = np.random.default_rng([seed, 0])
    while True:
        language = LANGUAGES[rng.integers(2)]
        topics = [TOPICS[name][language] for name in rng.permutation(list(TOPICS))[:2]]
        asked = [topic.wording("heldout", rng) for topic in topics]
        said, answer = draw_sum(language, "heldout", rng)
        yield [
            {"role": "system", "content": HEADS[language][0] + FORMATS[language][0]},
            {"role": "user", "content": said},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": " ".join(asked)},
        ]


def screens(seed: int) -> Iterator[Messages]:
    """Yield a home screen at a phone's true size, with an instruction to open one of its apps."""
    import numpy as np

    from autoglm.training.data.catalog import APPS
    from autoglm.training.data.screens import PHONES, draw_screen
    from autoglm.training.data.wording import templates

    rng = np.random.default_rng([seed, 1])
    while True:
        screen = draw_screen("heldout", rng, "home", PHONES["heldout"][0])
        app = screen.elements[rng.integers(len(screen.elements))].name
        words = templates("open", screen.language, "heldout")[0].format(APPS[app][screen.language])
        file = io.BytesIO()
        screen.image.save(file, "PNG", compress_level=1)
        yield [{"role": "user", "content": [image_bytes_part(file.getvalue()), {"type": "text", "text": words}]}]


def voices(seed: int) -> Iterator[Messages]:
    """Yield three seconds or a little more of commands in one voice, to be written down."""
    import numpy as np

    from autoglm.training.data.catalog import LANGUAGES
    from autoglm.training.data.speech import SAMPLE_RATE, draw_voice, synthesize
    from autoglm.training.data.wording import sentences

    rng = np.random.default_rng([seed, 2])
    every = sentences("heldout")
    while True:
        language = LANGUAGES[rng.integers(2)]
        pool, voice = [text for of, text in every if of == language], draw_voice(language, "heldout", rng)
        spoken: list[NDArray[np.float32]] = []
        while sum(map(len, spoken)) < LEAST_SPEECH * SAMPLE_RATE:
            spoken.append(synthesize(str(rng.choice(pool)), language, voice, rng))
        words = {"type": "text", "text": DICTATION[language]}
        yield [{"role": "user", "content": [audio_bytes_part(wav(np.concatenate(spoken), SAMPLE_RATE)), words]}]


def wav(samples: "NDArray[np.float32]", rate: int) -> bytes:
    """Return float samples [n] in [-1, 1] as a WAV file of 16 bits, mono."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


WORKLOADS: Mapping[str, Callable[[int], Iterator[Messages]]] = {"text": texts, "screen": screens, "voice": voices}


def draw(name: str, count: int, seed: int, advance: Callable[[], None]) -> list[Messages]:
    """Return `count` different requests of a workload; raises ToolsMissing."""
    try:
        source, made = WORKLOADS[name](seed), []
        for _ in range(count):
            made.append(next(source))
            advance()
    except ModuleNotFoundError as error:
        raise ToolsMissing(f"{error.name} is missing: pip install 'autoglm-mesh[train]'") from None
    return made
