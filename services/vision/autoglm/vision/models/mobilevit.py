"""MobileViT: an image becomes the 7 × 7 tokens of the last feature map.

Any width of `MobileViTModel` works, apple/mobilevit-small included. The whole picture is squashed to a square; nothing
is cropped, because a phone's screen matters up to its edges.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import MobileViTModel

from autoglm.common.int8 import quantize_int8
from autoglm.vision.image import decoded_image
from autoglm.vision.models.protocol import ImageTokens

STRIDE = 32  # pixels of a token's side
REDUCING_GAP = 2  # sides that a JPEG keeps for `resize`, in those of the result; Pillow's name and advice


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How pixels become numbers: the fields of preprocessor_config.json that are used here."""

    side: int = 224
    resample: int = int(Image.Resampling.BILINEAR)
    rescale_factor: float = 1 / 255
    flip_channels: bool = False

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `preprocessor_config.json`; a size without a height ("shortest_edge", a number) means 224."""
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


class MobileVit:
    """A MobileViT with its preprocessing, ready to encode: a `VisionModel`."""

    def __init__(self, model: MobileViTModel, preprocessing: Preprocessing, device: torch.device | str = "cpu") -> None:
        self.model: MobileViTModel = model.eval().requires_grad_(False).to(device)
        self.preprocessing = preprocessing
        self.device = torch.device(device)
        self.width: int = model.config.neck_hidden_sizes[-1]
        self.grid = (preprocessing.side // STRIDE, preprocessing.side // STRIDE)

    @classmethod
    def from_pretrained(cls, folder: Path, device: torch.device | str = "cpu", int8: bool = False) -> Self:
        """Load a folder with config.json, model.safetensors and preprocessor_config.json; compute in float32.

        With `int8` the weights are kept in 8 bits, see `quantize_int8`.
        """
        model = MobileViTModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        if int8:
            quantize_int8(model.eval())
        return cls(model, Preprocessing.load(Path(folder)), device)

    def save_pretrained(self, folder: Path) -> None:
        """Write the three files, with weights in bfloat16. The model itself becomes bfloat16."""
        self.model.to(torch.bfloat16).save_pretrained(folder)
        self.preprocessing.save(folder)

    def preprocess(self, data: bytes) -> Tensor:
        """Decode an image file to float32 [3, side, side]; raises ImageError."""
        with decoded_image(data, least=REDUCING_GAP * self.preprocessing.side) as image:
            return self.preprocessing.tensor(image)

    def blank(self) -> Tensor:
        """Return a black image as `preprocess` would: float32 [3, side, side]."""
        return torch.zeros(3, self.preprocessing.side, self.preprocessing.side)

    def encode(self, images: Sequence[Tensor]) -> list[ImageTokens]:
        """Encode preprocessed images, each [3, side, side], as one batch; tokens are bfloat16 on the CPU."""
        features = self.features(torch.stack(list(images))).to(torch.bfloat16).cpu()
        return [ImageTokens(tokens, self.grid) for tokens in features]

    @torch.inference_mode()
    def features(self, batch: Tensor) -> Tensor:
        """Return the tokens of images [B, 3, side, side]: float32 [B, tokens, width], row by row from the top left."""
        features: Tensor = self.model(batch.to(self.device)).last_hidden_state
        return features.flatten(2).transpose(1, 2).float()
