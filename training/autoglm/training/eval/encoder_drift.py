"""How much of the published Whisper encoder is left in the fine-tuned one, layer by layer."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoglm.speech.model import SpeechEncoder, SpeechModel
from autoglm.training.stages.speech import build_model

SEED = 11
RIDGE = 1e-2
LAYERS = ("1", "2", "3", "4", "4, normed: what is served")


class EncoderDrift(TypedDict):
    """What is `explained` of the published encoder after one layer: on people, on espeak with the same words, and
    by an encoder that was never trained, on people."""

    layer: str
    person: float
    espeak: float
    untrained: float


def explained(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return how much of the variance of `theirs` a linear map of `ours` explains, on clips it was not fitted on.

    1: the next linear layer could still read all of it; 0 or less: it could read nothing. Every dimension counts alike.

    Args:
        ours: the states [frames, width] of every clip; the map is fitted on one half of the clips, by turns.
        theirs: the other encoder's, of the same frames.
    """
    even, odd = slice(0, None, 2), slice(1, None, 2)
    shares = [_explained(ours[fit], theirs[fit], ours[test], theirs[test]) for fit, test in ((even, odd), (odd, even))]
    return sum(shares) / len(shares)


def _explained(
    fit_ours: Sequence[Tensor], fit_theirs: Sequence[Tensor], ours: Sequence[Tensor], theirs: Sequence[Tensor]
) -> float:
    x, y = _standard(fit_ours, fit_ours), _standard(fit_theirs, fit_theirs)
    linear = torch.linalg.solve(x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    truth = _standard(theirs, fit_theirs)
    missed = truth - _standard(ours, fit_ours) @ linear
    return float(1 - missed.square().sum() / (truth - truth.mean(0)).square().sum())


def _standard(clips: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """Return the states of all `clips`, float64, by mean and deviation of those of `like`."""
    measure = torch.cat(tuple(like)).double()
    return (torch.cat(tuple(clips)).double() - measure.mean(0)) / (measure.std(0) + 1e-6)


def layer_states(model: SpeechModel, clips: Sequence[NDArray[np.float32]]) -> list[list[Tensor]]:
    """Return for each of LAYERS the states [frames, width] of every clip of samples [n]."""
    encoder = model.network.encoder
    modules = (*encoder.layers, encoder.layer_norm)
    kept: list[list[Tensor]] = [[] for _ in modules]
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, states, keep=keep: keep.append(states[0]))
        for module, keep in zip(modules, kept, strict=True)
    ]
    for clip in clips:
        model.encode([clip])
    for hook in hooks:
        hook.remove()
    return kept


def encoder_drift(
    model: SpeechModel, people: Sequence[NDArray[np.float32]], twins: Sequence[NDArray[np.float32]]
) -> list[EncoderDrift]:
    """Return what is left of the published encoder in the fine-tuned one, layer by layer, for clips [n] at 16 kHz."""
    published = build_model(model.vocabulary)
    published.network.eval()
    torch.manual_seed(SEED)
    untrained = SpeechModel(SpeechEncoder(model.network.config).eval(), model.features, model.vocabulary)
    truth, ours, random = (layer_states(each, people) for each in (published, model, untrained))
    mock_truth, mock_ours = (layer_states(each, twins) for each in (published, model))
    return [
        EncoderDrift(
            layer=layer,
            person=explained(ours[n], truth[n]),
            espeak=explained(mock_ours[n], mock_truth[n]),
            untrained=explained(random[n], truth[n]),
        )
        for n, layer in enumerate(LAYERS)
    ]
