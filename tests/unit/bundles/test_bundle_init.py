"""`autoglm bundle init`: what it makes of published folders, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from autoglm.bundles.check import check
from autoglm.bundles.preset import Sources, assemble
from autoglm.bundles.sources import INDEX
from autoglm.cli.main import app
from autoglm.common.bundle import Bundle, BundleError, default_bundle
from autoglm.speech.model import SpeechModel

from .samples import NAME, NEW_TOKENS, save_decoder


def test_a_bundle_is_whole_named_and_sound(bundle: Bundle) -> None:
    report = check(bundle.root)
    assert (report.faults, bundle.name, bundle.architecture) == ([], NAME, "gcma")
    assert [part.name for part in report.parts] == ["vision", "speech", "fusion", "decoder"]
    assert [note.split(":")[0] for note in report.notes] == ["speech"]
    assert [path.name for path in bundle.root.parent.iterdir()] == ["nine"]


def test_weights_are_the_published_files_under_a_second_name(bundle: Bundle, sources: Sources) -> None:
    assert (bundle.root / "decoder" / INDEX).is_file()
    for part, source in (("vision", sources.vision), ("speech", sources.speech), ("decoder", sources.decoder)):
        files = sorted(Path(source).glob("*.safetensors"))
        assert files
        assert all(file.samefile(bundle.root / part / file.name) for file in files)


def test_missing_media_tokens_take_ids_behind_the_last(bundle: Bundle, sources: Sources) -> None:
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (sources.decoder, bundle.root / "decoder"))
    assert [after.convert_tokens_to_ids(text) for text in NEW_TOKENS] == list(range(len(before), len(before) + 4))
    assert after("Open <|user|> 手机")["input_ids"] == before("Open <|user|> 手机")["input_ids"]


def test_an_embedding_without_room_for_media_tokens_says_how_to_make_it(sources: Sources, tmp_path: Path) -> None:
    save_decoder(tmp_path / "tight", spare=3)  # and four tokens are missing
    with pytest.raises(BundleError, match=r"lacks <\|image\|>.*embedding of \d+ rows.*resize_token_embeddings"):
        assemble(tmp_path / "out", NAME, replace(sources, decoder=str(tmp_path / "tight")), print)
    assert not (tmp_path / "out").exists()


def test_a_speech_part_with_a_head_still_transcribes(sources: Sources, tmp_path: Path) -> None:
    speech = default_bundle() / "speech"
    made = assemble(tmp_path / "out", NAME, replace(sources, speech=str(speech)), print)
    assert check(made.root).notes == []
    assert SpeechModel.from_pretrained(made.part("speech")).transcribes


def test_an_interrupt_leaves_nothing(sources: Sources, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("decoder"):
            assert any(tmp_path.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assemble(tmp_path / "out", NAME, sources, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_as_it_is(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    options = ["--vision", sources.vision, "--speech", sources.speech, "--decoder", sources.decoder]
    done = CliRunner().invoke(app, ["bundle", "init", "--preset", NAME, *options, str(tmp_path)])
    assert done.exit_code == 1
    assert "exists and is left as it is" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_says_what_it_did(sources: Sources, tmp_path: Path) -> None:
    options = ["--vision", sources.vision, "--speech", sources.speech, "--decoder", sources.decoder]
    done = CliRunner().invoke(app, ["bundle", "init", "--preset", NAME, *options, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "linked 1 weight file" in done.stdout
    image = AutoTokenizer.from_pretrained(tmp_path / "out" / "decoder").convert_tokens_to_ids("<|image|>")
    assert f"<|image|> is {image}" in done.stdout
    assert check(tmp_path / "out").faults == []


@pytest.mark.parametrize(
    ("part", "model_type", "reason"),
    [
        ("decoder", "glm4", "has a model of type glm4, and the decoder part must be of transformers' type glm"),
        ("decoder", "chatglm", "has a model of type chatglm"),
        ("speech", "wav2vec2", "has a model of type wav2vec2, and the speech part must be"),
        ("vision", "vit", "has a model of type vit, and the vision part must be"),
    ],
)
def test_another_architecture_is_refused(
    sources: Sources, tmp_path: Path, part: str, model_type: str, reason: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(BundleError, match=reason):
        assemble(tmp_path / "out", NAME, replace(sources, **{part: str(tmp_path / "other")}), print)


def test_a_base_model_without_a_template_is_refused(sources: Sources, tmp_path: Path) -> None:
    shutil.copytree(sources.decoder, tmp_path / "base")
    (tmp_path / "base" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(BundleError, match="has no chat template: use a chat model"):
        assemble(tmp_path / "out", NAME, replace(sources, decoder=str(tmp_path / "base")), print)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("config.json", '{"model_type": "glm", "vocab_size": "many"}', "does not describe a decoder model"),
        ("config.json", "{", "config.json is damaged"),
        (INDEX, "{}", "has no tensor model.embed_tokens.weight"),
    ],
)
def test_a_damaged_source_is_refused(sources: Sources, tmp_path: Path, file: str, content: str, reason: str) -> None:
    shutil.copytree(sources.decoder, tmp_path / "damaged")
    (tmp_path / "damaged" / file).write_text(content)
    with pytest.raises(BundleError, match=reason):
        assemble(tmp_path / "out", NAME, replace(sources, decoder=str(tmp_path / "damaged")), print)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_weights_that_lack_a_tensor_are_refused(sources: Sources, tmp_path: Path) -> None:
    shutil.copytree(sources.speech, tmp_path / "speech")
    tensors = load_file(tmp_path / "speech" / "model.safetensors")
    del tensors["model.encoder.layers.1.fc1.weight"]
    save_file(tensors, tmp_path / "speech" / "model.safetensors")
    with pytest.raises(BundleError, match=r"not a complete speech part: has no tensor encoder\.layers\.1\.fc1\.weight"):
        assemble(tmp_path / "out", NAME, replace(sources, speech=str(tmp_path / "speech")), print)
    assert not (tmp_path / "out").exists()


def test_a_template_that_drops_messages_makes_no_bundle(sources: Sources, tmp_path: Path) -> None:
    shutil.copytree(sources.decoder, tmp_path / "forgetful")
    (tmp_path / "forgetful" / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    with pytest.raises(BundleError, match="do not make a bundle:\ndecoder: the chat template omits or reorders parts"):
        assemble(tmp_path / "out", NAME, replace(sources, decoder=str(tmp_path / "forgetful")), print)
    assert [path.name for path in tmp_path.iterdir()] == ["forgetful"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no way to the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_is_taken_from_the_hubs_cache(sources: Sources, hub: Path, tmp_path: Path) -> None:
    snapshot = hub / "models--openai--whisper-tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(sources.speech, snapshot)
    references = hub / "models--openai--whisper-tiny" / "refs"
    references.mkdir()
    (references / "main").write_text("0" * 40)
    made = assemble(tmp_path / "out", NAME, replace(sources, speech="openai/whisper-tiny"), print)
    assert (made.part("speech") / "model.safetensors").samefile(snapshot / "model.safetensors")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("openai/whisper-tiny", "is not a local folder, and the hub does not provide it .* use its folder"),
        ("./nowhere/at/all", "there is no folder ./nowhere/at/all; name a folder, or a hub id"),
    ],
)
def test_a_source_that_cannot_be_had_says_what_to_do(
    sources: Sources, hub: Path, tmp_path: Path, source: str, reason: str
) -> None:
    with pytest.raises(BundleError, match=reason):
        assemble(tmp_path / "out", NAME, replace(sources, speech=source), print)
    assert not (tmp_path / "out").exists()
