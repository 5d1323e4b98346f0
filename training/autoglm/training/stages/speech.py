"""The speech stage: fine-tunes Whisper-tiny.en's encoder with CTC on spoken commands.

Two CTC heads read its states: characters, which is served, and espeak's phonemes, which only helps training.
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor

from autoglm.speech.model import STACK, SpeechEncoder, SpeechModel, Vocabulary, pad_mels
from autoglm.training.data.catalog import LANGUAGES, Split
from autoglm.training.data.speech import Script, augment, words
from autoglm.training.eval.speech import HeldOutClips
from autoglm.training.loop import Loop, LoopConfig, LossAndFigures, Probe
from autoglm.training.precision import autocast
from autoglm.training.stages.align import save_head
from autoglm.training.stages.ctranslate2 import whisper_weights
from autoglm.training.stages.shards import Shard

SPLITS: tuple[Split, ...] = ("train", "heldout")
PROBE_STEPS, PROBE_CLIPS = 400, 96
CLIP = 1.0
LAYER_RATES = (0.3, 0.4, 0.6, 0.8, 1.0)  # the convolutions, then the four layers: early layers stay near Whisper


@dataclass(frozen=True, slots=True)
class SpeechConfig:
    """How the speech part is trained; recipes/nano.yaml explains each field."""

    seed: int
    clips: int
    steps: int
    batch_seconds: float
    encoder_rate: float
    head_rate: float
    warmup: int
    phoneme_weight: float
    held_out: int


def run(config: SpeechConfig, workdir: Path) -> None:
    """Train the speech part into `workdir`/speech (with metrics.json), from its checkpoint if there is one.

    Does nothing if that folder exists.
    """
    final = workdir / "speech"
    if final.exists():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / f"speech-clips-{config.clips}-{config.seed}.npy"
    if not path.with_suffix(".json").exists():
        Shard.write(path, config.clips, config.seed)
    shard = Shard.load(path)
    torch.manual_seed(config.seed)
    student = SpeechStudent(shard)
    loop = make_loop(student, config, workdir)
    order = shard.batches(config.batch_seconds, np.random.default_rng(config.seed))
    batches = islice(order, loop.step, None)
    probe = HeldOutClips.draw("heldout", "heldout", PROBE_CLIPS)
    loop.run(
        lambda step: student.loss(next(batches), config, step),
        Probe(PROBE_STEPS, lambda: {"heldout_cer": probe.error_rates(student.model)["cer"]}),
    )
    _finish(config, student.model, final)


def build_model(vocabulary: Vocabulary) -> SpeechModel:
    """Return the model before training: Whisper's encoder and a fresh CTC head."""
    config = WhisperConfig(
        vocab_size=len(vocabulary.characters), d_model=384, encoder_layers=4, encoder_attention_heads=6,
        encoder_ffn_dim=1536, decoder_layers=0, num_mel_bins=80, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    network = SpeechEncoder(config)
    network.encoder.load_state_dict(whisper_weights("encoder"))
    nn.init.xavier_uniform_(network.ctc.weight)
    return SpeechModel(network, WhisperFeatureExtractor(feature_size=80), vocabulary)


class SpeechStudent(nn.Module):
    """The network that is served, and the phoneme head that helps to train it."""

    def __init__(self, shard: Shard) -> None:
        super().__init__()
        texts = [text for split in SPLITS for every in Script.of(split).sentences.values() for text in every]
        every = [*texts, *(word for lang in LANGUAGES for word in words(lang)), ascii_lowercase]
        self.shard, self.model = shard, build_model(Vocabulary.of(every))
        self.sounds = ("<blank>", *sorted(set("".join(shard.sounds))))
        self.network = self.model.network
        self.phoneme_head = nn.Linear(self.network.config.d_model, len(self.sounds))

    def loss(self, batch: list[int], config: SpeechConfig, step: int) -> LossAndFigures:
        """Return the loss on the clips `batch`, a function of the weights, the seed and the step."""
        rng = np.random.default_rng([config.seed, step])
        mel, lengths = pad_mels([self.model.mel(augment(self.shard.clip(index), rng)) for index in batch])
        _mask(mel, lengths, rng)
        with autocast("cpu"):
            states, logits = self.network(mel, lengths)
            sound_logits = self.phoneme_head(states)
        characters = [self.model.vocabulary.encode(self.shard.texts[index]) for index in batch]
        sounds = [[self.sounds.index(sound) for sound in self.shard.sounds[index]] for index in batch]
        loss = _ctc(logits, lengths, characters)
        total = loss + config.phoneme_weight * _ctc(sound_logits, lengths, sounds)
        return total, {"loss": loss.item()}


def make_loop(student: SpeechStudent, config: SpeechConfig, workdir: Path) -> Loop:
    """Return the training loop of `student`, at the step of its checkpoint in `workdir` if there is one."""
    optimizer = torch.optim.AdamW(_groups(student, config), betas=(0.9, 0.98), weight_decay=0.01)
    settings = LoopConfig("speech", config.steps, CLIP, partial(_schedule, config))
    return Loop(student, [optimizer], settings, workdir)


def _groups(student: SpeechStudent, config: SpeechConfig) -> list[dict[str, object]]:
    """Return the parameters by learning rate: slow early layers, the encoder's end, the heads."""
    encoder = student.network.encoder
    stages = [[encoder.conv1, encoder.conv2], *([layer] for layer in encoder.layers)]
    stages[-1].append(encoder.layer_norm)
    groups: list[dict[str, object]] = [
        {"params": [p for module in stage for p in module.parameters()], "lr": config.encoder_rate * scale}
        for stage, scale in zip(stages, LAYER_RATES, strict=True)
    ]
    heads = [*student.network.ctc.parameters(), *student.phoneme_head.parameters()]
    return [*groups, {"params": heads, "lr": config.head_rate}]


def _schedule(config: SpeechConfig, step: int) -> float:
    """Return the factor of the peak rates: warm-up, and a cosine down to 2 %."""
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return min(1.0, (step + 1) / config.warmup) * cosine


def _mask(mel: Tensor, lengths: Tensor, rng: np.random.Generator) -> None:
    """SpecAugment in place on mel [B, 80, F]: two bands of up to 15 bins, two spans of up to 8 % of the clip."""
    for clip, length in zip(mel, (2 * lengths).tolist(), strict=True):
        for _ in range(2):
            band, span = int(rng.integers(0, 16)), int(rng.integers(0, max(2, min(25, length // 12))))
            bottom, start = int(rng.integers(0, 80 - band)), int(rng.integers(0, length - span))
            clip[bottom : bottom + band] = 0
            clip[:, start : start + span] = 0


def _ctc(logits: Tensor, lengths: Tensor, targets: list[list[int]]) -> Tensor:
    """Return the mean CTC loss per target symbol; logits [B, T, V], lengths [B]."""
    return nn.functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        torch.tensor([symbol for target in targets for symbol in target]),
        lengths,
        torch.tensor([len(target) for target in targets]),
        zero_infinity=True,
    )


def _finish(config: SpeechConfig, model: SpeechModel, final: Path) -> None:
    """Evaluate the model as it is stored (bfloat16 weights) and put it at `final`."""
    draft = final.with_name("tmp-speech")
    model.network.to(torch.bfloat16)
    model.save_pretrained(draft)
    stored = SpeechModel.from_pretrained(draft)
    metrics = {
        f"{voices}_voices_{said}_sentences": HeldOutClips.draw(voices, said, config.held_out).error_rates(stored)
        for voices in SPLITS
        for said in SPLITS
        if "heldout" in (voices, said)
    }
    head = torch.kron(torch.eye(STACK), model.network.ctc.weight.detach().float())  # each frame by itself
    save_head(final.parent, "audio", head, torch.ones(len(head)))
    report = {"config": asdict(config), "metrics": metrics}
    (draft / "metrics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(metrics, indent=2))
    os.replace(draft, final)
