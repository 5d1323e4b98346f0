"""The AUTOGLM_ variables: every name that a program of the mesh reads, and what is wrong with those that are set.

For what serves, that includes OpenTelemetry's variables (trace_variables.py).

A misspelled name would otherwise be ignored, and the API be open to everyone for want of a key. Programs call `review`
once, before they read anything. tests/contract keeps the names complete.
"""

import re
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from difflib import get_close_matches

from autoglm.common.trace_variables import trace_config

PREFIX = "AUTOGLM_"

GATEWAY = frozenset(
    {
        "ALLOWED_MEDIA_DOMAINS",
        "ALLOWED_PRIVATE_NETWORKS",
        "API_KEYS",
        "API_KEYS_FILE",
        "CACHE_BYTES",
        "CACHE_REFUSAL_TTL",
        "CACHE_SECRET",
        "CACHE_TTL",
        "CORS_ALLOW_ORIGINS",
        "DEFAULT_TIMEOUT",
        "DRAIN_TIMEOUT",
        "FORWARDED_ALLOW_IPS",
        "GRPC_PORT",
        "GRPC_SOCKET",
        "HOST",
        "HTTP_PORT",
        "LOG_ENCODING",
        "LOG_LEVEL",
        "MAX_BODY_BYTES",
        "MAX_BYTES_IN_PROGRESS",
        "MAX_CONCURRENT_REQUESTS",
        "MAX_CONNECTIONS",
        "MAX_CONNECTIONS_PER_ADDRESS",
        "MAX_IMAGE_PIXELS",
        "MAX_MEDIA_BYTES",
        "MAX_MEDIA_PARTS",
        "MAX_TIMEOUT",
        "MEDIA_FETCH_TIMEOUT",
        "POLL_INTERVAL",
        "POLL_TIMEOUT",
        "REDIS_BACKOFF",
        "REDIS_MODALITIES",
        "REDIS_TIMEOUT",
        "REDIS_URL",
        "SERVED_MODEL_NAMES",
        "SERVE_ADDRESS",
        "SERVE_SSL_CA_CERTS",
        "SERVE_SSL_CERTFILE",
        "SERVE_SSL_KEYFILE",
        "SERVE_TOKEN",
        "SSL_CA_CERTS",
        "SSL_CERTFILE",
        "SSL_KEYFILE",
        "TENANT_MAX_CONCURRENT_REQUESTS",
        "TENANT_REQUESTS_PER_MINUTE",
    }
)
SERVICES = frozenset({"BUNDLE", "LOG_ENCODING", "MAX_TIMEOUT", "SERVE_TOKEN"})
MESH = GATEWAY | SERVICES | {"MODALITIES"}  # `autoglm serve` and `autoglm doctor`
COMMANDS = frozenset({"API_KEY", "API_KEYS_FILE", "BUNDLE", "REDIS_URL", "URL"})  # the other commands
TESTS = frozenset({"CRDS"})  # tests/unit/deploy; the meshes that tests start need not warn of it
KNOWN = MESH | COMMANDS | TESTS

# Keys of `args` in the Serve config, which are not variables.
ARGS = frozenset(
    {
        "BATCH_WAIT_S",
        "DEVICE",
        "DTYPE",
        "ENABLE_PREFIX_CACHING",
        "ENGINE",
        "INT8",
        "KV_CACHE_MEMORY_BYTES",
        "MAX_AUDIO_SECONDS",
        "MAX_BATCH",
        "MAX_LORAS",
        "MAX_MODEL_LEN",
        "MAX_NUM_BATCHED_TOKENS",
        "MAX_NUM_SEQS",
        "MAX_ONGOING_REQUESTS",
        "MAX_QUEUED_REQUESTS",
        "NUM_CPUS",
        "NUM_GPUS",
        "THREADS",
    }
)

# What Kubernetes sets in each pod for every Service of the namespace (enableServiceLinks); the name of one called
# `autoglm` is not repeated. A Service called `autoglm-http` collides with AUTOGLM_HTTP_PORT.
_SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+")


@dataclass(frozen=True, slots=True)
class ReviewedEnvironment:
    """What is wrong with the variables, a line each: `warnings` are names that have no effect, with `faults` the
    program must not start. Neither contains a value, which may be a secret."""

    warnings: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def review(environ: MutableMapping[str, str], reads: Collection[str]) -> ReviewedEnvironment:
    """Find unknown AUTOGLM_ variables and unusable values of those that the program `reads`, given without the prefix.

    Afterwards `environ` means the same to every reader: names are in capitals, values have no white space around
    them, and unknown, empty and faulty variables are removed, so that no child process warns again.
    """
    warnings, faults = [*_capitalize(environ), *_unknown(environ, reads)], [*_unusable(environ, reads)]
    if "SERVE_TOKEN" in reads:  # it traces
        traces = trace_config(environ)
        faults += traces.faults
        for name, warning in traces.warnings:
            del environ[name]
            warnings.append(warning)
    return ReviewedEnvironment(tuple(warnings), tuple(faults))


def _names(environ: Mapping[str, str]) -> list[str]:
    return sorted(name for name in environ if name.upper().startswith(PREFIX))


def _capitalize(environ: MutableMapping[str, str]) -> Iterator[str]:
    """Rename known variables that are not in capitals: libraries differ in whether they would read them."""
    for name in _names(environ):
        capital = name.upper()
        if name == capital or capital.removeprefix(PREFIX) not in KNOWN:
            continue
        value = environ.pop(name)
        if environ.get(capital):
            yield f"{name} has no effect, because {capital} is set"
        else:
            environ[capital] = value
            yield f"{name} is read as {capital}; write it in capitals"


def _unknown(environ: MutableMapping[str, str], reads: Collection[str]) -> Iterator[str]:
    """Remove the variables that nothing reads."""
    links = dict(environ)
    for name in _names(environ):
        short = name.upper().removeprefix(PREFIX)
        if _lacks_its_s(short, environ, reads):
            yield f"{name} is not a setting, but the key that `autoglm chat` sends; did you mean {PREFIX}API_KEYS?"
        elif short in KNOWN or (name.isupper() and _is_service_link(short, links)):
            continue
        else:
            yield _unknown_name(name, short, reads)
        del environ[name]


def _lacks_its_s(short: str, environ: Mapping[str, str], reads: Collection[str]) -> bool:
    """Return whether a server finds a client's key where it has none of its own."""
    keys = {f"{PREFIX}API_KEYS", f"{PREFIX}API_KEYS_FILE"}
    return short == "API_KEY" and "API_KEYS" in reads and not any(environ.get(name) for name in keys)


def _unknown_name(name: str, short: str, reads: Collection[str]) -> str:
    if short in ARGS:
        return f"{name} is not a setting; {short.lower()} is set in `args` of the Serve config, deploy/serve.yaml"
    near = get_close_matches(short, sorted(reads), n=1) or get_close_matches(short, sorted(KNOWN), n=1)
    if near:
        return f"{name} is not a setting; did you mean {PREFIX}{near[0]}?"
    return f"{name} is not a setting; docs/configuration.md has every setting"


def _unusable(environ: MutableMapping[str, str], reads: Collection[str]) -> Iterator[str]:
    """Strip the values of the known variables, and remove what is empty or cannot be meant."""
    for name in _names(environ):
        short = name.removeprefix(PREFIX)
        if short not in KNOWN:
            continue
        value = environ.pop(name).strip()
        fault = _fault(name, short, value)
        if fault and short in reads:
            yield fault
        elif value and not fault:
            environ[name] = value


def _fault(name: str, short: str, value: str) -> str | None:
    if short.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value):
        service = name.removesuffix("_PORT").lower().replace("_", "-")
        return (
            f"{name} is the address that Kubernetes sets for the Service {service}: put enableServiceLinks: false in"
            " the pod's spec, or rename the Service"
        )
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return f"{name} is in quotes, which are part of its value, as in a file for docker --env-file: remove them"
    return None


def _is_service_link(short: str, environ: Mapping[str, str]) -> bool:
    if short.endswith("PORT") and _SERVICE_ADDRESS.fullmatch(environ[PREFIX + short]):
        return True
    if short in ("SERVICE_HOST", "SERVICE_PORT"):  # someone may also call a setting so: Kubernetes sets both
        return {f"{PREFIX}SERVICE_HOST", f"{PREFIX}SERVICE_PORT"} <= environ.keys()
    return bool(_SERVICE_LINK.fullmatch(short))
