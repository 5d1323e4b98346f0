"""What a vision encoder is to the service."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ImageTokens:
    """An image as tokens [high · wide, width], row by row from the top left; `grid` is (high, wide)."""

    tokens: Tensor
    grid: tuple[int, int]


class VisionModel(Protocol):
    """An encoder of images. Images of one batch may have different numbers of tokens."""

    width: int
    device: torch.device

    @classmethod
    def from_pretrained(cls, folder: Path, device: torch.device | str = "cpu", int8: bool = False) -> Self:
        """Load the vision part of a bundle, with weights in 8 bits if `int8`."""

    def preprocess(self, data: bytes) -> Tensor:
        """Return an image file in the form that `encode` takes, such as float32 [3, height, width]; raises ImageError.

        Called from several threads.
        """

    def blank(self) -> Tensor:
        """Return a blank image in that form (such as [3, height, width]), for warming up."""

    def encode(self, images: Sequence[Tensor]) -> list[ImageTokens]:
        """Encode preprocessed images as one batch; the tokens [n, width] of each are bfloat16 on the CPU."""
