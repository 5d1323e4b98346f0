"""Recordings before they are heard: cuts long ones into pieces that an encoder can read, where nothing is said if there
is such a place, and tells what cannot be speech."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

SAMPLE_RATE = 16_000
_FRAME = 160  # samples: 10 ms
_PAUSE = 25  # frames over which a place is judged, so that a pause wins over the closure of a plosive
_SHORTEST = 0.25  # of the longest piece
SOUND_SECONDS = 0.03
_SOUND = 480  # samples
_AUDIBLE_DB = 6.0  # over the background; speech and its pauses are 13 dB and more apart
_JUDGED_SECONDS = 1.0  # at least: a single vowel may be as steady as a hum
_STEADY = 20  # sounds of 0.03 s in which speech changes its level
_STEADY_DB = 2.0  # standard deviation; that of speech over so long is 5 and more


@dataclass(frozen=True, slots=True)
class AudioPiece:
    """A part of a recording: samples [n] at 16 kHz, `start` samples after the recording's own start."""

    start: int
    samples: Samples


def cut(samples: Samples, most: int) -> list[AudioPiece]:
    """Return `samples` [n] as pieces of at most `most` samples, in order and without gaps.

    A piece ends at the quietest place of its second half.
    """
    loudness, cuts = _loudness(samples), [0]
    while (rest := len(samples) - cuts[-1]) > most:
        first, last = cuts[-1] + most // 2, cuts[-1] + min(most, rest - int(most * _SHORTEST))
        frames = loudness[first // _FRAME : max(last // _FRAME, first // _FRAME + 1)]
        cuts.append((first // _FRAME + int(frames.argmin())) * _FRAME)
    return [AudioPiece(start, samples[start:end]) for start, end in zip(cuts, [*cuts[1:], len(samples)], strict=True)]


def audible(samples: Samples) -> NDArray[np.bool_]:
    """Return for each 0.03 s of `samples` [n] whether it stands out from the background [ceil(n / 480)].

    Nothing does in silence, and in what stays as loud for 0.6 s: a hum, a fan, hiss, also if it begins after speech.
    """
    padded = np.pad(samples.astype(np.float64), (0, -len(samples) % _SOUND))
    levels = 10 * np.log10(np.square(padded).reshape(-1, _SOUND).mean(1) + 1e-12)
    if len(samples) < _JUDGED_SECONDS * SAMPLE_RATE:
        return np.ones(len(levels), np.bool_)
    background = float(np.percentile(levels, 10))
    return np.asarray((levels > background + _AUDIBLE_DB) & ~_steady(levels))


def _steady(levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each level [n] in dB whether it belongs to a stretch of 0.6 s that is equally loud."""
    found = np.zeros(len(levels), np.bool_)
    if len(levels) >= _STEADY:
        windows = np.lib.stride_tricks.sliding_window_view(levels, _STEADY)
        for start in np.flatnonzero(windows.std(axis=1) < _STEADY_DB):
            found[start : start + _STEADY] = True
    return found


def _loudness(samples: Samples) -> NDArray[np.float64]:
    """Return the energy around the start of each frame of 10 ms [ceil(n / 160)]."""
    padded = np.pad(samples.astype(np.float64), (0, -len(samples) % _FRAME))
    energies = np.square(padded).reshape(-1, _FRAME).sum(1)
    sums = np.concatenate([[0.0], np.pad(energies, (_PAUSE // 2, _PAUSE - _PAUSE // 2)).cumsum()])
    return np.asarray((sums[_PAUSE:] - sums[:-_PAUSE])[: len(energies)])
