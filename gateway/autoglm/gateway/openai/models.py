"""GET /v1/models: the names that requests may use, as OpenAI's model objects."""

import time
from typing import Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict

from autoglm.common.modalities import MODALITY_NAMES
from autoglm.gateway.backend import Backend
from autoglm.gateway.limits import MAX_CHOICES
from autoglm.gateway.openai import openapi
from autoglm.gateway.openai.canonical_path import MODELS
from autoglm.gateway.openai.errors import JsonResponse
from autoglm.gateway.openai.exchange import authenticate
from autoglm.gateway.openai.telemetry import Modality
from autoglm.gateway.settings import Settings
from autoglm.v1.model_pb2 import ModelCard


class ModelLimits(BaseModel):
    """Limits of one request."""

    max_body_bytes: int
    max_media_bytes: int
    max_image_pixels: int
    max_media_parts: int
    max_choices: int


class ModelObject(BaseModel):
    """A name that requests may use, and its bundle."""

    model_config = ConfigDict(title="Model")

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    bundle: str
    modalities: list[Modality]
    max_model_len: int
    limits: ModelLimits


class ModelList(BaseModel):
    """The names that requests may use."""

    object: Literal["list"]
    data: list[ModelObject]


ANSWERS = (ModelObject, ModelList)
_NAME = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def add_routes(app: FastAPI, backend: Backend) -> None:
    """Serve the models to clients with a key."""
    created = int(time.time())

    @app.get(MODELS, **openapi.looking_up(ModelList))
    async def list_models(request: Request) -> JsonResponse:
        """List the names that requests may use."""
        authenticate(request, backend)
        cards = [model_object(card, backend.settings, created) for card in await backend.assistant.models()]
        return JsonResponse({"object": "list", "data": cards})

    @app.get(MODELS + "/{model:path}", **openapi.looking_up(ModelObject, _NAME))
    async def retrieve_model(request: Request) -> JsonResponse:
        """Describe one name."""
        model = request.path_params["model"]
        authenticate(request, backend)
        await backend.assistant.resolve(model, "model")
        (card,) = [card for card in await backend.assistant.models() if card.id == model]
        return JsonResponse(model_object(card, backend.settings, created))


def model_object(card: ModelCard, settings: Settings, created: int) -> dict[str, Any]:
    """Return OpenAI's model object for `card`, with its bundle and the limits of this gateway."""
    return {
        "id": card.id,
        "object": "model",
        "created": created,
        "owned_by": "autoglm",
        "bundle": card.bundle,
        "modalities": [MODALITY_NAMES[modality] for modality in card.modalities],
        "max_model_len": card.context_length,
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_media_bytes": settings.max_media_bytes,
            "max_image_pixels": settings.max_image_pixels,
            "max_media_parts": settings.max_media_parts,
            "max_choices": MAX_CHOICES,
        },
    }
