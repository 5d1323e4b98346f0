"""Checks a bundle without loading it: architecture, files, shapes, and whether the parts fit each other."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import GenerationConfig, WhisperFeatureExtractor

from autoglm.bundles import text, weights
from autoglm.common.bundle import ADAPTERS, Bundle, BundleError, Part, sha256_file
from autoglm.common.modalities import PARTS, PartName
from autoglm.decoder.architectures import ARCHITECTURES
from autoglm.decoder.engine.adapter_files import check_adapter
from autoglm.decoder.engine.models.glm import adapted_matrices
from autoglm.fusion.gcma.model import GcmaConfig
from autoglm.speech.model import MAX_SECONDS, SAMPLE_RATE, SAMPLES_PER_TOKEN, STACK, Vocabulary
from autoglm.vision.models.mobilevit import STRIDE, Preprocessing

FitCheck = Callable[[Any, Any, Path], Iterator[str]]  # a part's config, the fusion's, the part's folder
NEEDED: tuple[PartName, ...] = ("fusion", "decoder")
ALL_TOKENS = -(-MAX_SECONDS * SAMPLE_RATE // SAMPLES_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class PartReport:
    """One part: its model, its parameters, its bytes in bf16 and INT8, and the elements that are not loaded."""

    name: PartName
    model: str
    parameters: int
    bf16: int
    int8: int
    unused: int


@dataclass(slots=True)
class BundleReport:
    """The result of a check. `cache_per_token` is the decoder's bytes of keys and values for a token in bf16."""

    bundle: str
    architecture: str
    parts: list[PartReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    cache_per_token: int = 0
    context: int = 0


def check(root: Path, named_by: str = "AUTOGLM_BUNDLE") -> BundleReport:
    """Check the bundle in `root`, hashes included; raises BundleError when its manifest cannot be read.

    `named_by` is as for `Bundle.open`.
    """
    bundle = Bundle.open(root, named_by)
    report = inspect(bundle)
    report.faults[:0] = _damaged(bundle)
    return report


def inspect(bundle: Bundle) -> BundleReport:
    """Check everything but the hashes. Nothing else can be said of a bundle of an unknown architecture."""
    report = BundleReport(bundle.name, bundle.architecture)
    if bundle.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        report.faults.append(f"architecture {bundle.architecture!r} is unknown; this release serves {known}")
        return report
    configs: dict[PartName, Any] = {}
    for name in _whole(bundle, report):
        folder = bundle.root / name
        try:
            built = weights.skeleton(name, folder)
            configs[name] = built.config
            compared = weights.compare(name, built, weights.stored(folder))
            report.faults += [f"{name}: {fault}" for fault in compared.faults]
            report.parts.append(_describe(name, built.model, compared.unused))
        except BundleError as error:
            report.faults.append(f"{name}: {error}")
    report.faults += [f"{name}: {fault}" for name, fault in _misfits(configs, bundle.root)]
    report.faults += _adapter_faults(bundle, configs.get("decoder"))
    report.notes += _notes(configs)
    if config := configs.get("decoder"):
        report.cache_per_token = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        report.context = config.max_position_embeddings
    return report


def _whole(bundle: Bundle, report: BundleReport) -> list[PartName]:
    """Return the parts whose files are all present; others become faults, or notes if a bundle can do without them."""
    whole: list[PartName] = []
    for name in PARTS:
        if name not in bundle.parts and name in NEEDED:
            report.faults.append(f"{name}: the bundle has no such part and cannot answer without it; assemble it again")
            continue
        try:
            bundle.part(name)
            whole.append(name)
        except BundleError as error:
            (report.faults if name in bundle.parts else report.notes).append(f"{name}: {error}")
    return whole


def _damaged(bundle: Bundle) -> list[str]:
    parts: dict[str, Part] = {f"{ADAPTERS}/{name}": part for name, part in bundle.adapters.items()}
    parts |= {str(name): part for name, part in bundle.parts.items()}
    return [
        f"{name}: {file} differs from the SHA-256 in bundle.json; restore the file"
        for name, part in parts.items()
        for file, expected in part.files.items()
        if (bundle.root / name / file).is_file() and sha256_file(bundle.root / name / file) != expected
    ]


def _describe(name: PartName, model: nn.Module, unused: int) -> PartReport:
    count = weights.parameters(model)
    return PartReport(name, type(model).__name__, count, weights.bf16_bytes(model), weights.int8_bytes(model), unused)


def _notes(configs: Mapping[PartName, Any]) -> list[str]:
    if "speech" in configs and not configs["speech"].vocab_size:
        return ["speech: an encoder without a CTC head; chats can use recordings, but there are no transcripts"]
    return []


def _misfits(configs: Mapping[PartName, Any], root: Path) -> Iterator[tuple[PartName, str]]:
    """Yield what does not fit, with the part that it is found in."""
    for name, fit in FIT_CHECKS.items():
        if name in configs and "fusion" in configs:
            try:
                yield from ((name, fault) for fault in fit(configs[name], configs["fusion"], root / name))
            except BundleError as error:
                yield name, str(error)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raise BundleError, which names `file`, for whatever a damaged one makes its reader raise."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BundleError(f"{file} cannot be used ({reason}); restore the file") from error


def _adapter_faults(bundle: Bundle, config: Any) -> Iterator[str]:
    decoder = None if config is None else adapted_matrices(config)
    for name in bundle.adapters:
        try:
            check_adapter(bundle.adapter(name), decoder)
        except BundleError as error:
            yield f"{ADAPTERS}/{name}: {error}"


def _decoder_misfits(config: Any, fusion: GcmaConfig, folder: Path) -> Iterator[str]:
    if (width := fusion.text_width) != config.hidden_size:
        yield f"it reads tokens of width {config.hidden_size}, and the fusion writes width {width}"
    yield from text.misfits(folder, config.vocab_size)
    if not _stops(folder, config.eos_token_id):
        yield "generation_config.json and config.json have no eos_token_id; answers would never end"


def _stops(folder: Path, fallback: object) -> object:
    if (file := folder / "generation_config.json").is_file():
        with _reading(file):
            return GenerationConfig.from_pretrained(folder).eos_token_id
    return fallback


def _vision_misfits(config: Any, fusion: GcmaConfig, folder: Path) -> Iterator[str]:
    yield from _width_misfit(config.neck_hidden_sizes[-1], fusion.media_widths.get("image"), "an image")
    with _reading(folder / "preprocessor_config.json"):
        side, grid = Preprocessing.load(folder).side // STRIDE, fusion.image_grid
    if grid != (side, side):
        yield f"it makes {side} × {side} tokens of an image, and the fusion has positions for {grid[0]} × {grid[1]}"


def _speech_misfits(config: Any, fusion: GcmaConfig, folder: Path) -> Iterator[str]:
    yield from _width_misfit(STACK * config.d_model, fusion.media_widths.get("audio"), "a recording")
    if fusion.max_audio_tokens < ALL_TOKENS:
        yield f"{MAX_SECONDS} s are {ALL_TOKENS} tokens, and the fusion has positions for {fusion.max_audio_tokens}"
    with _reading(folder / "preprocessor_config.json"):
        bins = WhisperFeatureExtractor.from_pretrained(folder).feature_size
    if bins != config.num_mel_bins:
        yield f"its features have {bins} mel bins, and its encoder reads {config.num_mel_bins}"
    with _reading(folder / "vocab.json"):
        count = len(Vocabulary.load(folder).characters) if config.vocab_size else 0
    if count != config.vocab_size:
        yield f"vocab.json has {count} characters, and the CTC head {config.vocab_size}"


def _width_misfit(given: int, taken: int | None, what: str) -> Iterator[str]:
    if given != taken:
        reads = f"width {taken}" if taken else "none"
        yield f"it makes tokens of width {given} of {what}, and the fusion reads {reads}"


FIT_CHECKS: Mapping[PartName, FitCheck] = {
    "vision": _vision_misfits,
    "speech": _speech_misfits,
    "decoder": _decoder_misfits,
}
