"""The vision encoder: an image file becomes 49 tokens of a MobileViT's last feature map.

Any width of `MobileViTModel` serves, apple/mobilevit-small included. The whole picture is squashed to a
square; nothing is cropped, for a phone's screen matters up to its edges.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers import MobileViTModel

from autoglm.common.int8 import quantize_int8

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 40_000_000
STRIDE = 32


class ImageError(ValueError):
    """The bytes are not an image that can be encoded; the message says why and holds no file content."""


class ImageTooLarge(ImageError):
    """The image has more than `MAX_PIXELS` pixels."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How pixels become numbers: the fields of preprocessor_config.json that matter here."""

    side: int = 224
    resample: int = int(Image.Resampling.BILINEAR)
    rescale_factor: float = 1 / 255
    flip_channels: bool = False

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `preprocessor_config.json`; a size that is no square ("shortest_edge", a number) means 224."""
        raw = json.loads((folder / "preprocessor_config.json").read_text())
        size = raw.get("size")
        return cls(
            side=size.get("height", cls().side) if isinstance(size, dict) else cls().side,
            resample=raw.get("resample", cls().resample),
            rescale_factor=raw.get("rescale_factor", cls().rescale_factor),
            flip_channels=raw.get("do_flip_channel_order", True),
        )

    def save(self, folder: Path) -> None:
        """Write `preprocessor_config.json` as transformers' MobileViTImageProcessor reads it."""
        raw = {
            "image_processor_type": "MobileViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.side, "width": self.side},
            "resample": self.resample,
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_flip_channel_order": self.flip_channels,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(raw, indent=2) + "\n")

    def squash(self, image: Image.Image) -> Image.Image:
        """Return the RGB image as a square of `side` pixels, whatever its aspect."""
        return image.resize((self.side, self.side), Image.Resampling(self.resample))

    def tensor(self, image: Image.Image) -> Tensor:
        """Return an RGB image as float32 [3, side, side]."""
        pixels = torch.from_numpy(np.array(self.squash(image))).permute(2, 0, 1)
        return (pixels.flip(0) if self.flip_channels else pixels).float() * self.rescale_factor


def decode_image(data: bytes) -> Image.Image:
    """Decode a JPEG, PNG, WebP or GIF (first frame) to RGB: upright, transparency on white.

    Raises ImageTooLarge for more than `MAX_PIXELS` pixels, which the header tells before anything is
    decoded, and ImageError for anything that is not such a file or is broken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageTooLarge(f"image of {image.width} x {image.height} pixels is over the limit of {MAX_PIXELS}")
            image.load()
            return _on_white(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not a JPEG, PNG, WebP or GIF image") from error
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"image is over the limit of {MAX_PIXELS} pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError("image is truncated or broken") from error


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


class VisionModel:
    """A MobileViT with its preprocessing, ready to encode."""

    def __init__(self, model: MobileViTModel, preprocessing: Preprocessing, device: torch.device | str = "cpu") -> None:
        self.model: MobileViTModel = model.eval().requires_grad_(False).to(device)
        self.preprocessing = preprocessing
        self.device = torch.device(device)
        self.width: int = model.config.neck_hidden_sizes[-1]
        self.tokens = (preprocessing.side // STRIDE) ** 2

    @classmethod
    def from_pretrained(cls, folder: Path, device: torch.device | str = "cpu", int8: bool = False) -> Self:
        """Load a folder with config.json, model.safetensors and preprocessor_config.json; compute in float32.

        With `int8` the weights are held as 8-bit integers, see `quantize_int8`.
        """
        model = MobileViTModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        if int8:
            quantize_int8(model.eval())
        return cls(model, Preprocessing.load(Path(folder)), device)

    def save_pretrained(self, folder: Path) -> None:
        """Write the three files, weights in bfloat16, the preprocessing included. The model becomes bfloat16."""
        self.model.to(torch.bfloat16).save_pretrained(folder)
        self.preprocessing.save(folder)

    def preprocess(self, data: bytes) -> Tensor:
        """Decode an image file to float32 [3, side, side]. Raises ImageError."""
        return self.preprocessing.tensor(decode_image(data))

    @torch.inference_mode()
    def encode(self, batch: Tensor) -> Tensor:
        """Encode images [B, 3, side, side] to float32 tokens [B, tokens, width], row by row from the top left."""
        features: Tensor = self.model(batch.to(self.device)).last_hidden_state
        return features.flatten(2).transpose(1, 2).float()
