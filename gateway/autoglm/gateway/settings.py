"""What an operator may set: every field is an environment variable, AUTOGLM_ and its name in capitals."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024
OPEN_KEY = "EMPTY"

_ORIGIN = re.compile(r"https?://[^/\s]+")
# The last label begins with a letter, as in no way of writing an IP address.
HOST = r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_MEDIA_DOMAIN = re.compile(rf"(?:\*|(?:\*\.)?{HOST})(?::[1-9]\d{{0,4}})?")

Port = Annotated[int, Field(ge=0, le=65535)]


def _split(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _known_level(value: str) -> str:
    if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return value.upper()


def _known_hosts(value: str) -> str:
    for host in _split(value.lower()):
        if not _MEDIA_DOMAIN.fullmatch(host):
            raise ValueError(f"{host} is no host; give one like media.example or *.example:8443")
    return value.lower()


def _known_networks(value: str) -> str:
    for network in _split(value):
        ip_network(network)
    return value


def _redis_address(value: SecretStr) -> SecretStr:
    if address := value.get_secret_value():
        from redis.connection import parse_url  # who uses no Redis need not load it

        try:
            parse_url(address)  # type: ignore[no-untyped-call]
        except ValueError:
            raise ValueError("give an address like redis://localhost:6379/0") from None
    return value


def wrong_setting(error: ValidationError) -> str:
    """Return the first thing that is wrong with the settings, in one line that names the variable and not its value."""
    wrong = error.errors(include_url=False, include_input=False)[0]
    name = "".join(f"AUTOGLM_{step}: ".upper() for step in wrong["loc"][:1])
    return name + wrong["msg"].removeprefix("Value error, ")


class Settings(BaseSettings):
    """Settings of one gateway process, validated once at start."""

    model_config = SettingsConfigDict(env_prefix="AUTOGLM_", extra="forbid", frozen=True)

    host: str = Field(default="0.0.0.0", description="Address that both doors listen on.")
    http_port: Port = Field(default=8000, description="Port of the OpenAI API; 0 takes a free one.")
    grpc_port: Port = Field(default=50051, description="Port of the gRPC API; 0 takes a free one.")
    serve_address: str = Field(default="127.0.0.1:9000", description="Ray Serve's gRPC ingress, as host:port.")

    serve_token: SecretStr = Field(
        default=SecretStr(""), description="Token that the services want of a caller; set the same for them."
    )
    serve_ssl_ca_certs: str = Field(
        default="",
        description="Authorities of what stands before `serve_address`, in PEM; with them TLS is spoken to it.",
    )
    serve_ssl_certfile: str = Field(default="", description="Certificate chain that the gateway shows it, in PEM.")
    serve_ssl_keyfile: str = Field(default="", description="Key of `serve_ssl_certfile`, in PEM.")

    ssl_certfile: str = Field(
        default="", description="Certificate chain of both doors, in PEM; with it and its key they speak TLS."
    )
    ssl_keyfile: str = Field(default="", description="Key of `ssl_certfile`, in PEM and without a password.")
    ssl_ca_certs: str = Field(
        default="", description="Authorities, in PEM; every client must show a certificate that one of them signed."
    )
    cors_allow_origins: str = Field(
        default="", description="Origins whose pages may use the API, comma separated, or `*` for all; empty is none."
    )

    api_keys: SecretStr = Field(
        default=SecretStr(""), description="Accepted API keys, comma separated; without any key all are let in."
    )
    api_keys_file: str = Field(
        default="", description="File of tenants and their keys' hashes (`autoglm keys`), read again when it changes."
    )
    tenant_requests_per_minute: NonNegativeInt = Field(
        default=0, description="Requests a minute of a tenant for which the file says nothing else; 0 is no limit."
    )
    tenant_max_concurrent_requests: NonNegativeInt = Field(
        default=0, description="Requests in progress of such a tenant in this gateway; 0 is no limit."
    )
    max_concurrent_requests: PositiveInt = Field(
        default=256, description="Requests in progress, of all tenants, before new ones get a 429."
    )
    default_timeout: PositiveFloat = Field(
        default=120.0, description="Seconds a request may take when it does not say."
    )
    max_timeout: PositiveFloat = Field(default=3600.0, description="Most seconds that a request may ask for.")
    drain_timeout: PositiveFloat = Field(
        default=20.0, description="Seconds that running requests get when the process stops."
    )

    max_body_bytes: PositiveInt = Field(
        default=32 * MIB, description="Largest request, in bytes, and as much again for what its URLs lead to."
    )
    max_bytes_in_progress: PositiveInt = Field(
        default=512 * MIB,
        description="Bytes of all requests in progress and of what their URLs lead to, before new ones get a 429.",
    )
    max_media_bytes: PositiveInt = Field(default=20 * MIB, description="Largest image or recording, in bytes.")
    max_image_pixels: PositiveInt = Field(default=40_000_000, description="Largest image, in pixels.")
    max_media_parts: PositiveInt = Field(default=64, description="Most images and recordings in one request.")

    allowed_media_domains: Annotated[str, AfterValidator(_known_hosts)] = Field(
        default="",
        description="Hosts that media is fetched from by https: URLs, comma separated: `host`, `*.domain` or `*` for"
        " any public one, each with `:port` unless it is 443; empty is none.",
    )
    allowed_private_networks: Annotated[str, AfterValidator(_known_networks)] = Field(
        default="",
        description="Networks, such as `10.1.0.0/16`, that hosts which `allowed_media_domains` names may be in; all"
        " others have to be public.",
    )
    media_fetch_timeout: PositiveFloat = Field(
        default=10.0, description="Seconds that one image or recording may take to be fetched."
    )

    redis_url: Annotated[SecretStr, AfterValidator(_redis_address)] = Field(
        default=SecretStr(""), description="Redis or Valkey for embeddings and limits; empty uses none."
    )
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
        """The accepted API keys, beside those of the file."""
        return _split(self.api_keys.get_secret_value())

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins whose pages may use the API."""
        return _split(self.cors_allow_origins)

    @property
    def media_domains(self) -> tuple[str, ...]:
        """The hosts that media is fetched from."""
        return _split(self.allowed_media_domains)

    @property
    def private_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks that are not public and may be fetched from."""
        return tuple(ip_network(network) for network in _split(self.allowed_private_networks))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if OPEN_KEY in self.keys:
            raise ValueError(f"api_keys: {OPEN_KEY} is what clients send to an open server; it cannot be a key")
        if self.default_timeout > self.max_timeout:
            raise ValueError("default_timeout: must not exceed max_timeout")
        if self.max_body_bytes * (2 if self.media_domains else 1) > self.max_bytes_in_progress:
            raise ValueError("max_body_bytes: one request, with as much of its URLs, exceeds max_bytes_in_progress")
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ValueError("ssl_certfile, ssl_keyfile: set both or neither")
        if self.ssl_ca_certs and not self.ssl_certfile:
            raise ValueError("ssl_ca_certs: needs ssl_certfile and ssl_keyfile")
        if bool(self.serve_ssl_certfile) != bool(self.serve_ssl_keyfile):
            raise ValueError("serve_ssl_certfile, serve_ssl_keyfile: set both or neither")
        if self.serve_ssl_certfile and not self.serve_ssl_ca_certs:
            raise ValueError("serve_ssl_certfile: needs serve_ssl_ca_certs")
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"cors_allow_origins: {origin} is no origin; give one like https://app.example:8443")
        return self
