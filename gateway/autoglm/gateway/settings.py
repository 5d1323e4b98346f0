"""What an operator may set: every field is an environment variable, AUTOGLM_ and its name in capitals."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024
OPEN_KEY = "EMPTY"

Port = Annotated[int, Field(ge=0, le=65535)]


def _known_level(value: str) -> str:
    if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return value.upper()


class Settings(BaseSettings):
    """Settings of one gateway process, validated once at start."""

    model_config = SettingsConfigDict(env_prefix="AUTOGLM_", extra="forbid", frozen=True)

    host: str = Field(default="0.0.0.0", description="Address that both doors listen on.")
    http_port: Port = Field(default=8000, description="Port of the OpenAI API; 0 takes a free one.")
    grpc_port: Port = Field(default=50051, description="Port of the gRPC API; 0 takes a free one.")
    serve_address: str = Field(default="127.0.0.1:9000", description="Ray Serve's gRPC ingress, as host:port.")

    api_keys: SecretStr = Field(
        default=SecretStr(""), description="Accepted API keys, comma separated; empty lets all in."
    )
    max_concurrent_requests: PositiveInt = Field(
        default=256, description="Requests in progress before new ones get a 429."
    )
    default_timeout: PositiveFloat = Field(
        default=120.0, description="Seconds a request may take when it does not say."
    )
    max_timeout: PositiveFloat = Field(default=3600.0, description="Most seconds that a request may ask for.")
    drain_timeout: PositiveFloat = Field(
        default=20.0, description="Seconds that running requests get when the process stops."
    )

    max_body_bytes: PositiveInt = Field(default=32 * MIB, description="Largest request, in bytes.")
    max_media_bytes: PositiveInt = Field(default=20 * MIB, description="Largest image or recording, in bytes.")
    max_image_pixels: PositiveInt = Field(default=40_000_000, description="Largest image, in pixels.")
    max_media_parts: PositiveInt = Field(default=64, description="Most images and recordings in one request.")

    redis_url: SecretStr = Field(default=SecretStr(""), description="Redis or Valkey for embeddings; empty uses none.")
    redis_timeout: PositiveFloat = Field(default=0.25, description="Seconds that one look into Redis may take.")
    redis_backoff: PositiveFloat = Field(default=5.0, description="Seconds without Redis after it failed.")
    cache_ttl: PositiveInt = Field(default=24 * 3600, description="Seconds that an embedding stays in Redis.")
    cache_bytes: int = Field(default=64 * MIB, ge=0, description="Embeddings kept in this process, in bytes.")
    cache_secret: SecretStr = Field(
        default=SecretStr(""),
        description="Key of the hash that keeps tenants' cache entries apart; the same in every replica.",
    )

    poll_interval: PositiveFloat = Field(default=2.0, description="Seconds between looks at the services' health.")
    poll_timeout: PositiveFloat = Field(default=5.0, description="Seconds that a service has to say how it is.")
    log_level: Annotated[str, AfterValidator(_known_level)] = Field(
        default="INFO", description="Least level that is logged."
    )

    @property
    def keys(self) -> tuple[str, ...]:
        """The accepted API keys; none means that the gateway is open."""
        return tuple(key.strip() for key in self.api_keys.get_secret_value().split(",") if key.strip())

    @model_validator(mode="after")
    def _check(self) -> Self:
        if OPEN_KEY in self.keys:
            raise ValueError(f"api_keys: {OPEN_KEY} is what clients send to an open server; it cannot be a key")
        if self.default_timeout > self.max_timeout:
            raise ValueError("default_timeout: must not exceed max_timeout")
        return self
