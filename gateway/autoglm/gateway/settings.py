"""The gateway's settings: each field is an environment variable, AUTOGLM_ and its name in capitals."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from autoglm.common.deadlines import MAX_TIMEOUT
from autoglm.common.logs import Encoding
from autoglm.common.modalities import BY_KIND, MEDIA_MODALITIES

MIB = 1024 * 1024
OPEN_KEY = "EMPTY"

_ORIGIN = re.compile(r"https?://[^/\s]+")
# The last label begins with a letter, unlike in any notation of an IP address.
HOST = r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_MODEL_NAME = re.compile(r"[^\s/]+(?:/[^\s/]+)*")
_MEDIA_DOMAIN = re.compile(rf"(?:\*|(?:\*\.)?{HOST})(?::[1-9]\d{{0,4}})?")

Port = Annotated[int, Field(ge=0, le=65535)]


def _split(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _known_level(value: str) -> str:
    if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return value.upper()


def _known_hosts(value: str) -> str:
    for host in _split(value.lower()):
        if not _MEDIA_DOMAIN.fullmatch(host):
            raise ValueError(f"{host} is not a host; use the form media.example or *.example:8443")
    return value.lower()


def _known_networks(value: str) -> str:
    for network in _split(value):
        ip_network(network)
    return value


def _known_proxies(value: str) -> str:
    if value != "*":
        for proxy in _split(value):
            ip_network(proxy)
    return value


def _known_names(value: str) -> str:
    for name in _split(value):
        if not _MODEL_NAME.fullmatch(name):
            raise ValueError(f"{name} is not a model name; use the form autoglm-phone or team/autoglm-phone")
    return value


def _known_modalities(value: str) -> str:
    for kind in _split(value):
        if kind not in BY_KIND:
            raise ValueError(f"{kind} is not a modality with an encoder; choose from {', '.join(BY_KIND)}")
    return value


def _redis_address(value: SecretStr) -> SecretStr:
    if address := value.get_secret_value():
        from autoglm.gateway.redis_address import parse  # loaded only where Redis is used

        parse(address)
    return value


def wrong_setting(error: ValidationError) -> str:
    """Return the first error in the settings, as one line with the variable's name and without its value."""
    wrong = error.errors(include_url=False, include_input=False)[0]
    name = "".join(f"AUTOGLM_{step}: ".upper() for step in wrong["loc"][:1])
    return name + wrong["msg"].removeprefix("Value error, ")


class Settings(BaseSettings):
    """Settings of one gateway process, validated once at start."""

    model_config = SettingsConfigDict(env_prefix="AUTOGLM_", extra="forbid", frozen=True)

    host: str = Field(default="0.0.0.0", description="Address that the HTTP and gRPC servers listen on.")
    http_port: Port = Field(default=8000, description="Port of the OpenAI API; 0 picks a free one.")
    grpc_port: Port = Field(default=50051, description="Port of the gRPC API; 0 picks a free one.")
    grpc_socket: str = Field(
        default="",
        description="Path of a Unix socket on which the gRPC server listens instead of `grpc_port`, without TLS: for a"
        " proxy in front of it, such as `deploy/grpc-proxy.cfg`. `autoglm serve` sets it itself.",
    )
    serve_address: str = Field(
        default="127.0.0.1:9000",
        description="Address of Ray Serve's gRPC ingress, as host:port. Calls are spread over all addresses that the"
        " host's name has, such as that of a headless Service.",
    )

    served_model_names: Annotated[str, AfterValidator(_known_names)] = Field(
        default="",
        description="Model names that requests may use, comma-separated; answers carry the first. Empty means the"
        " bundle's name, `autoglm-phone-9b` and `autoglm-phone-9b-multilingual`.",
    )
    serve_token: SecretStr = Field(
        default=SecretStr(""),
        description="Token that the services require from callers; set the same value for the services. While it is"
        " replaced, two with a comma: gateways send the first, services accept both.",
    )
    serve_ssl_ca_certs: str = Field(
        default="",
        description="CA certificates (PEM) for `serve_address`. Setting them enables TLS to the services.",
    )
    serve_ssl_certfile: str = Field(
        default="", description="Client certificate chain (PEM) that the gateway presents there."
    )
    serve_ssl_keyfile: str = Field(default="", description="Private key (PEM) of `serve_ssl_certfile`.")

    ssl_certfile: str = Field(
        default="", description="Certificate chain (PEM) of both servers. Setting it and its key enables TLS."
    )
    ssl_keyfile: str = Field(default="", description="Private key (PEM) of `ssl_certfile`, without a password.")
    ssl_ca_certs: str = Field(
        default="",
        description="CA certificates (PEM). If set, every client must present a certificate signed by one of them.",
    )
    forwarded_allow_ips: Annotated[str, AfterValidator(_known_proxies)] = Field(
        default="127.0.0.1,::1",
        description="Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses and networks,"
        " comma-separated, or `*` for all.",
    )
    cors_allow_origins: str = Field(
        default="",
        description="Origins whose pages may use the API, comma-separated, or `*` for all; empty means none.",
    )

    api_keys: SecretStr = Field(
        default=SecretStr(""),
        description="Accepted API keys, comma-separated. Without any key, the API is open to everyone.",
    )
    api_keys_file: str = Field(
        default="",
        description="File with tenants and the hashes of their keys (see `autoglm keys`), reloaded when it changes.",
    )
    tenant_requests_per_minute: NonNegativeInt = Field(
        default=0,
        description="Rate limit of a tenant, in requests per minute, unless the file sets another; 0 means no limit.",
    )
    tenant_max_concurrent_requests: NonNegativeInt = Field(
        default=0,
        description="Maximum concurrent requests of a tenant in one gateway, likewise; 0 means no limit.",
    )
    max_concurrent_requests: PositiveInt = Field(
        default=256, description="Maximum concurrent requests of all tenants; more are rejected with 429."
    )
    default_timeout: PositiveFloat = Field(
        default=120.0, description="Seconds that a request may take unless it sets its own timeout."
    )
    max_timeout: PositiveFloat = Field(
        default=MAX_TIMEOUT,
        description="Maximum timeout, in seconds, that a request may set; set the same value for the services, which"
        " wait as long for running answers when they end.",
    )
    drain_timeout: PositiveFloat = Field(
        default=20.0, description="Seconds that running requests get to finish when the process stops."
    )

    max_connections: PositiveInt = Field(
        default=1000,
        description="Maximum open connections of the HTTP server, and of the gRPC server; more are refused.",
    )
    max_connections_per_address: PositiveInt = Field(
        default=250,
        description="Maximum open connections to the HTTP server, and to the proxy of `autoglm serve` for gRPC, from"
        " one IPv4 address or IPv6 /64 network; the proxies in `forwarded_allow_ips` have no such limit.",
    )
    max_body_bytes: PositiveInt = Field(
        default=32 * MIB,
        description="Maximum request body in bytes. Media fetched from URLs has a separate budget of the same size.",
    )
    max_bytes_in_progress: PositiveInt = Field(
        default=512 * MIB,
        description="Maximum bytes of all requests in progress and their fetched media; more are rejected with 429.",
    )
    max_media_bytes: PositiveInt = Field(
        default=20 * MIB, description="Maximum size of one image or recording, in bytes."
    )
    max_image_pixels: PositiveInt = Field(default=40_000_000, description="Maximum size of an image, in pixels.")
    max_media_parts: PositiveInt = Field(
        default=64, description="Maximum number of images and recordings in one request."
    )

    allowed_media_domains: Annotated[str, AfterValidator(_known_hosts)] = Field(
        default="",
        description="Hosts that media may be fetched from by https: URLs, comma-separated: `host`, `*.domain`, or `*`"
        " for any public host, each with `:port` unless that is 443; empty means none.",
    )
    allowed_private_networks: Annotated[str, AfterValidator(_known_networks)] = Field(
        default="",
        description="Private networks, such as `10.1.0.0/16`, in which hosts named by `allowed_media_domains` may be;"
        " all other hosts must have public addresses.",
    )
    media_fetch_timeout: PositiveFloat = Field(
        default=10.0, description="Maximum seconds to fetch one image or recording."
    )

    redis_url: Annotated[SecretStr, AfterValidator(_redis_address)] = Field(
        default=SecretStr(""), description="Redis or Valkey server for embeddings and rate limits; empty means none."
    )
    redis_timeout: PositiveFloat = Field(default=0.25, description="Maximum seconds for one Redis command.")
    redis_backoff: PositiveFloat = Field(
        default=5.0, description="Seconds to go on without Redis after three failures in a row."
    )
    redis_modalities: Annotated[str, AfterValidator(_known_modalities)] = Field(
        default=",".join(BY_KIND),
        description="Modalities whose embeddings are kept in Redis, comma-separated: those that are fetched sooner than"
        " encoded (`autoglm bench cache`); empty means none.",
    )
    cache_ttl: PositiveInt = Field(
        default=24 * 3600, description="Maximum seconds that an embedding is kept in Redis; the minimum is 90 % of it."
    )
    cache_refusal_ttl: NonNegativeFloat = Field(
        default=60.0,
        description="Seconds for which media that an encoder refused as invalid are refused without asking it again;"
        " 0 means never.",
    )
    cache_bytes: int = Field(
        default=64 * MIB, ge=0, description="Maximum bytes of embeddings cached in this process; 0 disables this cache."
    )
    cache_secret: SecretStr = Field(
        default=SecretStr(""),
        description="Secret of the hash that separates tenants' cache entries, and of the checksum without which no"
        " entry is believed; must be the same in every replica.",
    )

    poll_interval: PositiveFloat = Field(default=2.0, description="Seconds between health polls of the services.")
    poll_timeout: PositiveFloat = Field(
        default=5.0, description="Maximum seconds for a service to answer a health poll."
    )
    log_level: Annotated[str, AfterValidator(_known_level)] = Field(
        default="INFO", description="Lowest level that is logged: DEBUG, INFO, WARNING or ERROR."
    )
    log_encoding: Annotated[Encoding, BeforeValidator(str.upper)] = Field(
        default="TEXT",
        description="Whether a line of the log is text or a JSON object: TEXT or JSON. The services read it too, as the"
        " `encoding` of Ray Serve's `logging_config`.",
    )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the start warns of: an API that is open to everyone who can reach it, and a cache that anyone who can
        write to a Redis on the network can forge."""
        warnings = []
        if self.is_open and not (self.ssl_ca_certs or self.is_local):
            warnings.append(
                f"no API key is set: the API is open to everyone who can reach {self.host}; set AUTOGLM_API_KEYS or"
                " AUTOGLM_API_KEYS_FILE, or listen on this machine alone with AUTOGLM_HOST=127.0.0.1"
            )
        if self.redis_url.get_secret_value().startswith("redis") and not self.cache_secret.get_secret_value():
            warnings.append(
                "no cache secret is set: whoever can write to Redis can forge embeddings and transcripts; set"
                " AUTOGLM_CACHE_SECRET to the same secret in every replica"
            )
        return tuple(warnings)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the servers."""
        return _is_loopback(self.host)

    @property
    def is_open(self) -> bool:
        """Whether requests need no API key."""
        return not (self.keys or self.api_keys_file)

    @property
    def keys(self) -> tuple[str, ...]:
        """The accepted API keys, in addition to those of the file."""
        return _split(self.api_keys.get_secret_value())

    @property
    def model_names(self) -> tuple[str, ...]:
        """The model names that requests may use, if any are set."""
        return tuple(dict.fromkeys(_split(self.served_model_names)))

    @property
    def proxies(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The proxies that are believed, unless all are."""
        return () if self.forwarded_allow_ips == "*" else tuple(map(ip_network, _split(self.forwarded_allow_ips)))

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins whose pages may use the API."""
        return _split(self.cors_allow_origins)

    @property
    def media_domains(self) -> tuple[str, ...]:
        """The hosts that media may be fetched from."""
        return _split(self.allowed_media_domains)

    @property
    def redis_modality_numbers(self) -> frozenset[int]:
        """The modalities whose embeddings are kept in Redis, as values of autoglm.v1.Modality."""
        kinds = _split(self.redis_modalities)
        return frozenset(row.number for row in MEDIA_MODALITIES if row.kind in kinds)

    @property
    def private_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The private networks that media may be fetched from."""
        return tuple(ip_network(network) for network in _split(self.allowed_private_networks))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.api_keys.get_secret_value() and not self.keys:
            raise ValueError("AUTOGLM_API_KEYS: contains no key; leave it out for an API that is open to everyone")
        if OPEN_KEY in self.keys:
            raise ValueError(
                f"AUTOGLM_API_KEYS: {OPEN_KEY} is what clients send to a server without keys, so it cannot be a key"
            )
        if self.default_timeout > self.max_timeout:
            raise ValueError("AUTOGLM_DEFAULT_TIMEOUT: must not exceed AUTOGLM_MAX_TIMEOUT")
        if self.max_body_bytes * (2 if self.media_domains else 1) > self.max_bytes_in_progress:
            raise ValueError(
                "AUTOGLM_MAX_BODY_BYTES: one request and the media from its URLs can exceed"
                " AUTOGLM_MAX_BYTES_IN_PROGRESS"
            )
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ValueError("AUTOGLM_SSL_CERTFILE, AUTOGLM_SSL_KEYFILE: set both or neither")
        if self.ssl_ca_certs and not self.ssl_certfile:
            raise ValueError("AUTOGLM_SSL_CA_CERTS: requires AUTOGLM_SSL_CERTFILE and AUTOGLM_SSL_KEYFILE")
        if bool(self.serve_ssl_certfile) != bool(self.serve_ssl_keyfile):
            raise ValueError("AUTOGLM_SERVE_SSL_CERTFILE, AUTOGLM_SERVE_SSL_KEYFILE: set both or neither")
        if self.serve_ssl_certfile and not self.serve_ssl_ca_certs:
            raise ValueError("AUTOGLM_SERVE_SSL_CERTFILE: requires AUTOGLM_SERVE_SSL_CA_CERTS")
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"AUTOGLM_CORS_ALLOW_ORIGINS: {origin} is not an origin; use the form https://app.example:8443"
                )
        return self
