"""`autoglm bundle check`: each fault is a line that says what to do, and the exit status is 1."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from autoglm.bundles.check import check
from autoglm.bundles.preset import Sources
from autoglm.cli.checks import open_bundle
from autoglm.cli.main import app
from autoglm.cli.processes import StartError
from autoglm.common.bundle import Bundle, BundleError, default_bundle, write_manifest
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.gcma.model import GcmaConfig, GcmaFusion

from .samples import NAME, NEW_TOKENS


def faults(folder: Path) -> list[str]:
    """Return the faults that the command prints; it must end with status 1."""
    done = CliRunner().invoke(app, ["bundle", "check", str(folder)])
    assert done.exit_code == 1, done.output
    return [line.removeprefix("fault: ") for line in done.stdout.splitlines() if line.startswith("fault: ")]


def change(folder: Path, file: str, **values: object) -> None:
    """Set values of a JSON file and describe the bundle anew, so that hashes are right."""
    raw = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(raw | values))
    write_manifest(folder, NAME, "gcma")


def test_a_broken_hash(copied: Path) -> None:
    file = copied / "vision" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert faults(copied) == ["vision: model.safetensors differs from the SHA-256 in bundle.json; restore the file"]


def test_a_wrong_shape(copied: Path) -> None:
    change(copied, "decoder/config.json", intermediate_size=80)
    found = faults(copied)
    assert found[0] == (
        "decoder: model.layers.0.mlp.down_proj.weight has shape [64, 96], and its config asks for [64, 80]"
    )
    assert found[-1] == "decoder: … and 1 more tensors like these"


def test_a_wrong_type(copied: Path) -> None:
    file = copied / "fusion" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "out.weight": tensors["out.weight"].to(torch.int8)}, file)
    write_manifest(copied, NAME, "gcma")
    assert faults(copied) == ["fusion: out.weight has type I8, and the services load F32, BF16, F16"]


def test_a_file_cut_short(copied: Path) -> None:
    file = copied / "speech" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    write_manifest(copied, NAME, "gcma")
    (found,) = faults(copied)
    assert "is not a whole safetensors file" in found


def test_an_unknown_architecture_is_the_only_fault(copied: Path) -> None:
    write_manifest(copied, NAME, "mamba")
    assert faults(copied) == ["architecture 'mamba' is unknown; this release serves gcma"]


def test_a_missing_part(copied: Path) -> None:
    shutil.rmtree(copied / "decoder")
    assert faults(copied) == [f"decoder: bundle {NAME} lacks decoder/chat_template.jinja; restore the file"]
    write_manifest(copied, NAME, "gcma")
    assert faults(copied) == ["decoder: the bundle has no such part and cannot answer without it; assemble it again"]


def test_a_missing_eye_is_no_fault(copied: Path) -> None:
    shutil.rmtree(copied / "vision")
    write_manifest(copied, NAME, "gcma")
    done = CliRunner().invoke(app, ["bundle", "check", str(copied)])
    assert done.exit_code == 0
    assert "note: vision: bundle autoglm-phone-9b-gcma has no vision part; it serves without that" in done.stdout


def test_a_missing_media_token(copied: Path, sources: Sources) -> None:
    shutil.copy(Path(sources.decoder) / "tokenizer.json", copied / "decoder" / "tokenizer.json")
    write_manifest(copied, NAME, "gcma")
    assert faults(copied) == [
        f"decoder: the tokenizer has no token {text}; assemble the bundle with autoglm bundle init"
        for text in GCMA_LAYOUT.media_tokens
        if text in NEW_TOKENS
    ]


@pytest.mark.parametrize(
    ("file", "values", "fault"),
    [
        ("vision/preprocessor_config.json", {"size": {"height": 256, "width": 256}}, "vision: it makes 8 × 8 tokens"),
        ("speech/preprocessor_config.json", {"feature_size": 128}, "speech: its features have 128 mel bins, and its"),
        ("decoder/generation_config.json", {"eos_token_id": None}, "decoder: generation_config.json and config.json"),
        ("decoder/config.json", {"model_type": "glm4"}, "has a model of type glm4"),
        ("decoder/config.json", {"num_hidden_layers": "two"}, "does not describe a decoder model"),
    ],
)
def test_parts_that_do_not_fit(copied: Path, file: str, values: dict[str, object], fault: str) -> None:
    change(copied, file, **values)
    assert any(fault in found for found in faults(copied)), faults(copied)


@pytest.mark.parametrize(
    "file",
    [
        "vision/preprocessor_config.json",
        "vision/config.json",
        "speech/preprocessor_config.json",
        "fusion/config.json",
        "decoder/config.json",
        "decoder/generation_config.json",
        "decoder/tokenizer.json",
    ],
)
def test_a_damaged_json_file_is_named(copied: Path, file: str) -> None:
    """In `bundle check`, in doctor, and when a replica opens its part, with the reason, in one line."""
    (copied / file).write_text((copied / file).read_text()[:-20])
    bundle = write_manifest(copied, NAME, "gcma")
    (found,) = faults(copied)
    assert f"{copied / file} is damaged (" in found
    with pytest.raises(BundleError, match=re.escape(f"{copied / file} is damaged (")):
        bundle.verify()
    with pytest.raises(StartError, match=re.escape(f"{copied / file} is damaged (")):
        open_bundle(copied)


@pytest.mark.parametrize(
    ("file", "values", "fault"),
    [
        ("vision/preprocessor_config.json", {"size": {"height": "big"}}, "vision: {} cannot be used (unsupported"),
        ("speech/preprocessor_config.json", {"feature_size": "x"}, "speech: {} cannot be used ("),
        ("decoder/generation_config.json", {"max_new_tokens": "x"}, "decoder: {} cannot be used ("),
    ],
)
def test_a_file_with_values_that_cannot_be_used_is_named(
    copied: Path, file: str, values: dict[str, object], fault: str
) -> None:
    change(copied, file, **values)
    (found,) = faults(copied)
    assert found.startswith(fault.format(copied / file))


def adapter(folder: Path, name: str = "phone", inputs: int = 64) -> Path:
    """Put a LoRA of rank 2 on the down projection of the first layer."""
    target = folder / "adapters" / name
    target.mkdir(parents=True)
    (target / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {key.format("A"): torch.zeros(2, inputs), key.format("B"): torch.zeros(64, 2)}
    save_file(factors, target / "adapter_model.safetensors")
    write_manifest(folder, NAME, "gcma")
    return target


def test_a_sound_adapter_is_no_fault(copied: Path) -> None:
    adapter(copied)
    assert check(copied).faults == []


def test_an_adapter_for_another_decoder_is_a_fault(copied: Path) -> None:
    folder = adapter(copied, inputs=60)
    (found,) = faults(copied)
    assert found.startswith(f"adapters/phone: {folder / 'adapter_model.safetensors'}: ")
    assert "has shape [2, 60], and the decoder's q_proj has 64 outputs and 64 inputs" in found


def test_a_damaged_adapter_is_told_by_file_and_reason(copied: Path) -> None:
    """Whether the manifest was written before the damage or after it; and before anything is started."""
    folder = adapter(copied)
    (folder / "adapter_config.json").write_text("{")
    reason = f"{folder / 'adapter_config.json'} is damaged (Expecting property name"
    differs, damaged = faults(copied)
    assert differs == "adapters/phone: adapter_config.json differs from the SHA-256 in bundle.json; restore the file"
    assert damaged.startswith(f"adapters/phone: {reason}")
    write_manifest(copied, NAME, "gcma")
    assert faults(copied) == [damaged]
    with pytest.raises(StartError, match=re.escape(reason)):
        open_bundle(copied)
    (folder / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    write_manifest(copied, NAME, "gcma")
    with pytest.raises(StartError, match=r"adapter_model\.safetensors is not a whole safetensors file"):
        open_bundle(copied)


def test_widths_must_meet(copied: Path) -> None:
    grids = GcmaConfig(text_width=32, media_widths={"image": 25}, image_grid=(7, 7))
    GcmaFusion(grids).save_pretrained(copied / "fusion")
    write_manifest(copied, NAME, "gcma")
    assert faults(copied) == [
        "vision: it makes tokens of width 24 of an image, and the fusion reads width 25",
        "speech: it makes tokens of width 128 of a recording, and the fusion reads none",
        "decoder: it reads tokens of width 64, and the fusion writes width 32",
    ]


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ nothing( }}", "the chat template cannot be used"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", None),
        ("{{ messages[-1].content }}", "the chat template omits or reorders parts of messages"),
    ],
)
def test_a_template_must_keep_every_part(copied: Path, template: str, fault: str | None) -> None:
    (copied / "decoder" / "chat_template.jinja").write_text(template)
    write_manifest(copied, NAME, "gcma")
    found = check(copied).faults
    assert found == [] if fault is None else fault in found[0]


def test_no_bundle_at_all(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bundle", "check", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no bundle at" in done.stderr


def test_the_command_places_on_the_cards_asked_about(bundle: Bundle) -> None:
    done = CliRunner().invoke(app, ["bundle", "check", str(bundle.root), "--gpus", "24GB,24GB", "--json"])
    read = json.loads(done.stdout)
    assert (done.exit_code, read["sound"]) == (0, True)
    assert [(row["device"], row["services"]) for row in read["placement"]] == [
        ("cuda:0", ["vision", "speech"]),
        ("cuda:1", ["decoder"]),
    ]
    tiny = CliRunner().invoke(app, ["bundle", "check", str(bundle.root), "--gpus", "1GB"])
    assert tiny.exit_code == 0
    assert "cuda:0 (1.0 GB): vision, speech, decoder, " in tiny.stdout
    assert "does not fit, 2.0 GB are lacking" in tiny.stdout


def test_a_size_that_is_none_is_refused(bundle: Bundle) -> None:
    done = CliRunner().invoke(app, ["bundle", "check", str(bundle.root), "--gpus", "24"])
    assert done.exit_code == 1
    assert "'24' is not a GPU's memory; write for example 24GB,24GB" in done.stderr


def test_the_committed_bundle_is_sound() -> None:
    report = check(default_bundle())
    assert (report.faults, report.notes) == ([], [])
