"""The vision encoder and the screens it is trained on, with real parts and random weights."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import MobileViTModel

from autoglm.common.bundle import BundleError
from autoglm.common.int8 import Int8Linear, quantize_int8
from autoglm.fusion.gcma.init import initialise
from autoglm.training.data.catalog import APPS, COLOURS, SETTINGS
from autoglm.training.data.icons import GLYPHS, glyph
from autoglm.training.data.screens import BANDS, PHONES, SCREEN_KINDS, TRAIN_SHARE, draw_screen, layout_unit
from autoglm.training.data.sheets import draw_sheet
from autoglm.training.eval.vision import evaluate
from autoglm.training.recipe import Recipe
from autoglm.training.stages.vision import encoder_config, run
from autoglm.training.stages.vision_data import Pictures, collate, screens_of
from autoglm.training.stages.vision_heads import Student, loss
from autoglm.v1.embedding_pb2 import EncoderInfo
from autoglm.v1.modality_pb2 import MODALITY_IMAGE
from autoglm.v1.vision_pb2 import VisionServiceEncodeRequest
from autoglm.vision.image import MAX_PIXELS, ImageError, ImageTooLarge
from autoglm.vision.models import load_vision_model
from autoglm.vision.models.mobilevit import MobileVit, Preprocessing
from autoglm.vision.servicer import VisionServicer
from autoglm.vision.settings import VisionSettings

WIDTH = 320


@pytest.fixture(scope="module")
def encoder() -> MobileViTModel:
    """A random encoder that has seen enough pictures for its batch statistics to be sane."""
    torch.manual_seed(0)
    model = MobileViTModel(encoder_config(), expand_output=True)
    initialise(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(collate(screens_of("train", 0, 8)).images.float() / 255)
    return model.eval()


@pytest.fixture(scope="module")
def folder(encoder: MobileViTModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vision")
    MobileVit(encoder, Preprocessing()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> MobileVit:
    return MobileVit.from_pretrained(folder)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return collate(screens_of("heldout", 3, 4)).images.float() / 255


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# Screens


@pytest.mark.parametrize("kind", SCREEN_KINDS)
def test_one_seed_draws_one_screen(kind: str) -> None:
    first, second = (draw_screen("train", np.random.default_rng(5), kind) for _ in range(2))  # type: ignore[arg-type]
    assert first.elements == second.elements
    assert first.image.tobytes() == second.image.tobytes()


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_elements_lie_inside_and_in_cells_of_their_own(split: str) -> None:
    for screen in screens_of(split, 11, 120):  # type: ignore[arg-type]
        for element in screen.elements:
            left, top, right, bottom = element.box
            assert 0 <= left < right <= 1000, element
            assert 0 <= top < bottom <= 1000, element
        cells = [(int(x * 7 // 1000), int(y * 7 // 1000)) for x, y in (e.centre for e in screen.elements)]
        assert len(cells) == len(set(cells)), screen.elements


def test_a_home_screen_holds_distinct_apps_of_catalog_colours() -> None:
    for seed in range(30):
        screen = draw_screen("train", np.random.default_rng(seed), "home")
        names = [e.name for e in screen.elements]
        assert 4 <= len(names) <= 20
        assert len(set(names)) == len(names)
        assert set(names) <= set(APPS)
        assert {e.colour for e in screen.elements} <= set(COLOURS)


def test_pages_hold_what_their_kind_promises() -> None:
    rng = np.random.default_rng(1)
    settings = draw_screen("train", rng, "settings")
    switches = [e for e in settings.elements if e.kind == "switch"]
    assert settings.app == "settings"
    assert 3 <= len(switches) <= 6
    assert all(e.name in SETTINGS and e.on is not None for e in switches)
    assert {e.name for e in draw_screen("train", rng, "dialog").elements} == {"ok", "cancel"}
    opened = draw_screen("train", rng, "app")
    assert [e.name for e in opened.elements if e.kind == "title"] == [opened.app]


def test_a_screen_comes_in_the_size_asked_for() -> None:
    small = draw_screen("train", np.random.default_rng(2), "home", (270, 600))
    large = draw_screen("train", np.random.default_rng(2), "home", (1080, 2400))
    assert large.image.size == (1080, 2400)
    for a, b in zip(small.elements, large.elements, strict=True):
        assert (a.kind, a.name) == (b.kind, b.name)
        assert a.centre == pytest.approx(b.centre, abs=2)


def test_the_splits_share_no_layout_parameter() -> None:
    rng = np.random.default_rng(0)
    train = [layout_unit("train", rng) * BANDS % 1 for _ in range(500)]
    heldout = [layout_unit("heldout", rng) * BANDS % 1 for _ in range(500)]
    assert max(train) < TRAIN_SHARE <= min(heldout)
    shapes = {split: {round(h / w, 3) for w, h in phones} for split, phones in PHONES.items()}
    assert not set(PHONES["train"]) & set(PHONES["heldout"])
    assert shapes["train"] != shapes["heldout"]


def test_every_name_has_a_glyph_of_its_own() -> None:
    assert set(GLYPHS) == {*APPS, *SETTINGS, "back"}
    masks = {name: np.asarray(glyph(name, 16), dtype=float) / 255 for name in GLYPHS}
    names = list(masks)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert np.abs(masks[first] - masks[second]).mean() > 0.05, (first, second)


def test_a_sheet_fills_its_grid_without_overlap() -> None:
    for seed in range(40):
        sheet = draw_sheet(np.random.default_rng(seed))
        cells = {(int(x * 7 // 1000), int(y * 7 // 1000)) for x, y in (e.centre for e in sheet.elements)}
        assert len(cells) == len(sheet.elements) > 9


# Preprocessing


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_formats_are_told_by_content(model: MobileVit, kind: str) -> None:
    pixels = model.preprocess(encoded(Image.new("RGB", (50, 90), (255, 0, 0)), kind))
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == torch.float32
    assert pixels.mean((1, 2)).tolist() == pytest.approx([1.0, 0.0, 0.0], abs=0.02)


def test_the_first_frame_of_an_animation_counts(model: MobileVit) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    pixels = model.preprocess(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert pixels.mean((1, 2)).tolist() == pytest.approx([0.0, 0.0, 1.0], abs=0.02)


def test_transparency_becomes_white(model: MobileVit) -> None:
    assert model.preprocess(encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), "PNG")).min() == 1


def test_exif_orientation_is_honoured(model: MobileVit) -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it upright
    pixels = model.preprocess(encoded(image, "PNG", exif=exif))
    assert pixels[:, :90].mean() > 0.95
    assert pixels[:, 134:].mean() < 0.05


@pytest.mark.parametrize(
    "entry",
    [(0x8769, 9, 1, 2**32 - 1), (0x011A, 7, 1, 0), (0x011A, 2, 1, 0), (0x0132, 10, 1, 0), (0xA005, 5, 1, 0)],
)
def test_broken_exif_data_changes_nothing_else(model: MobileVit, entry: tuple[int, int, int, int]) -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    tags = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", *entry)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + tags + bytes(4) + bytes(range(40))
    pixels = model.preprocess(encoded(image, "JPEG", exif=exif, quality=100))
    assert pixels[:, :90].mean() > 0.95
    assert pixels[:, 134:].mean() < 0.05


def test_palette_and_grey_images_are_read(model: MobileVit) -> None:
    for mode in ("P", "L", "1", "LA"):
        assert model.preprocess(encoded(Image.new(mode, (5, 5)), "PNG")).shape == (3, 224, 224)


def test_what_is_not_an_image_is_refused(model: MobileVit) -> None:
    for data in (b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", encoded(Image.new("RGB", (9, 9)), "BMP")):
        with pytest.raises(ImageError, match="not a JPEG, PNG, WebP or GIF"):
            model.preprocess(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_truncated_image_is_refused(model: MobileVit, kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(ImageError):
        model.preprocess(data[: len(data) // 2])


@pytest.mark.parametrize(("width", "height"), [(8000, 5001), (200_000, 200_000)])
def test_a_bomb_is_refused_by_its_header(model: MobileVit, width: int, height: int) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    with pytest.raises(ImageTooLarge, match=f"limit of {MAX_PIXELS}"):
        model.preprocess(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""))


def test_the_preprocessing_is_recorded_as_transformers_reads_it(folder: Path) -> None:
    raw = json.loads((folder / "preprocessor_config.json").read_text())
    assert raw["size"] == {"height": 224, "width": 224}
    assert raw["do_center_crop"] is False
    assert Preprocessing.load(folder) == Preprocessing()


# The encoder


def test_saving_keeps_the_features(folder: Path, encoder: MobileViTModel, images: torch.Tensor) -> None:
    ours, again = MobileVit.from_pretrained(folder), MobileViTModel.from_pretrained(folder, dtype=torch.float32)
    theirs = again.eval()(images).last_hidden_state
    assert ours.features(images).shape == (4, 49, WIDTH)
    assert (ours.width, ours.grid) == (WIDTH, (7, 7))
    torch.testing.assert_close(ours.features(images)[:, 2 * 7 + 3], theirs[:, :, 2, 3])


def test_encoded_images_have_tokens_in_bfloat16_and_their_grid(model: MobileVit, images: torch.Tensor) -> None:
    encoded = model.encode(list(images))
    assert [image.grid for image in encoded] == [(7, 7)] * 4
    expected = model.features(torch.stack(list(images))).to(torch.bfloat16)
    assert torch.equal(torch.stack([image.tokens for image in encoded]), expected)
    assert model.blank().shape == images[0].shape


def test_the_encoder_is_chosen_by_its_model_type(folder: Path, tmp_path: Path) -> None:
    loaded = load_vision_model(folder)
    assert isinstance(loaded, MobileVit)
    assert loaded.width == WIDTH
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(BundleError, match="model_type 'siglip', and this release serves mobilevit"):
        load_vision_model(tmp_path)


async def test_an_image_is_answered_with_the_grid_of_its_tokens(model: MobileVit) -> None:
    class Context:
        def set_code(self, code: object) -> None:
            raise AssertionError(code)

        set_details = set_trailing_metadata = set_code

        def batched(self, size: int) -> None: ...

        def encoded(self, preprocess: float, queue: float, compute: float) -> None: ...

    servicer = VisionServicer(model, EncoderInfo(revision="r"), VisionSettings.model_validate({}))
    request = VisionServiceEncodeRequest(image=encoded(Image.new("RGB", (50, 90), "red"), "PNG"))
    embedding = (await servicer.encode(request, Context(), Context())).embedding
    assert (list(embedding.grid), list(embedding.tokens.shape)) == ([7, 7], [49, WIDTH])
    assert (embedding.modality, embedding.encoder_revision) == (MODALITY_IMAGE, "r")


def test_a_batch_gives_what_single_images_give(model: MobileVit, images: torch.Tensor) -> None:
    singles = torch.cat([model.features(image[None]) for image in images])
    torch.testing.assert_close(model.features(images), singles, rtol=1e-4, atol=1e-4)


def test_int8_is_int8_and_close(folder: Path, model: MobileVit, images: torch.Tensor) -> None:
    quantized = MobileVit.from_pretrained(folder, int8=True)
    layers = [m for m in quantized.model.modules() if type(m).__name__.startswith("Int8")]
    assert len(layers) > 60
    assert all(layer.weight.dtype == torch.int8 for layer in layers)
    assert not any(isinstance(m, nn.Linear | nn.Conv2d) for m in quantized.model.modules())
    wanted, got = model.features(images), quantized.features(images)
    assert not torch.equal(wanted, got)
    closeness = nn.functional.cosine_similarity(wanted.flatten(1), got.flatten(1))
    assert closeness.min() > 0.95  # random weights let rounding grow; a trained encoder comes closer


def test_an_int8_linear_layer_is_its_float_one_within_a_step() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(64, 96))
    x = torch.randn(2, 5, 64)
    wanted = block(x)
    quantize_int8(block)
    assert isinstance(block[0], Int8Linear)
    assert (block(x) - wanted).abs().max() < 0.05


# Training


def test_initialise_scales_by_fan_and_resets_norms_and_biases() -> None:
    torch.manual_seed(0)
    conv, linear, embedding, norm = nn.Conv2d(32, 64, 3), nn.Linear(256, 256), nn.Embedding(500, 64), nn.BatchNorm2d(8)
    nn.init.normal_(norm.weight, std=0.02)
    initialise(nn.ModuleList([conv, linear, embedding, norm]))
    stds = [float(layer.weight.detach().std()) for layer in (conv, linear, embedding)]
    assert stds == pytest.approx([(2 / (32 * 9)) ** 0.5, (2 / 512) ** 0.5, 0.1], rel=0.05)
    assert conv.bias is not None
    assert not conv.bias.any()
    assert not linear.bias.any()
    assert (norm.weight == 1).all()


def test_a_resumed_run_sees_the_pictures_it_would_have_seen() -> None:
    whole = list(Pictures(seed=1, batch=2, start=0, steps=3, sheet_steps=1))
    rest = list(Pictures(seed=1, batch=2, start=2, steps=3, sheet_steps=1))
    assert torch.equal(whole[2].images, rest[0].images)
    assert torch.equal(whole[2].name, rest[0].name)


def test_heads_learn_and_report() -> None:
    torch.manual_seed(0)
    student = Student(MobileViTModel(encoder_config(), expand_output=True))
    screens = screens_of("train", 2, 4)
    batch = collate(screens)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        value = loss(student(batch.images.float() / 255), batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] * 0.8
    metrics = evaluate(student, screens)
    assert {"identity", "localisation", "colour", "switch", "count", "opened_app", "page_kind"} <= set(metrics)


def test_a_finished_stage_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vision").mkdir()
    run(Recipe.read().vision, tmp_path)
    assert "done already" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["vision"]
