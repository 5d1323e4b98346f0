"""The vision encoders that the service knows, by the `model_type` of their config.json.

A new encoder is a module here that implements `VisionModel`, and a row in the table.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from autoglm.common.bundle import BundleError
from autoglm.vision.models.mobilevit import MobileVit
from autoglm.vision.models.protocol import VisionModel

VISION_MODELS: Mapping[str, type[VisionModel]] = {"mobilevit": MobileVit}


def load_vision_model(folder: Path, device: torch.device | str = "cpu", int8: bool = False) -> VisionModel:
    """Load the encoder in `folder`; raises BundleError for a `model_type` that is not in the table."""
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type not in VISION_MODELS:
        known = ", ".join(sorted(VISION_MODELS))
        raise BundleError(f"the vision part has model_type {model_type!r}, and this release serves {known}")
    return VISION_MODELS[model_type].from_pretrained(folder, device, int8)
