"""The variables of OpenTelemetry, OTEL_…: what they ask for, and what is wrong with those that are set.

OpenTelemetry's own reader falls back to a default where it does not understand a value. Here that is a fault, as with
the variables of the mesh.
"""

import os
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import urlsplit

PREFIX = "OTEL_"

Check = Callable[[str], str | None]
"""Returns what to give instead, if a value cannot be used."""


@dataclass(frozen=True, slots=True)
class TraceConfig:
    """Where spans go, "otlp" or "console" or nowhere, by which protocol of OTLP; and what is wrong, a line each.

    `warnings` are variables without an effect, by name, with `faults` the program must not start. Neither contains a
    value: headers have keys in them.
    """

    exporters: tuple[str, ...] = ()
    protocol: str = "grpc"
    warnings: tuple[tuple[str, str], ...] = ()
    faults: tuple[str, ...] = ()


def _one_of(*values: str) -> Check:
    return lambda value: None if value.lower() in values else f"give {', '.join(values[:-1])} or {values[-1]}"


def _number(least: float, most: float, what: str) -> Check:
    def check(value: str) -> str | None:
        try:
            return None if least <= float(value) <= most else f"give {what}"
        except ValueError:
            return f"give {what}"

    return check


def _whole(least: int) -> Check:
    return lambda value: None if value.isdecimal() and int(value) >= least else f"give a whole number from {least} on"


def _pairs(value: str) -> str | None:
    names = [item.partition("=")[::2] for item in value.split(",") if item.strip()]
    return None if all(name.strip() and text for name, text in names) else "give name=value, with commas between pairs"


def _file(path: str) -> str | None:
    return None if os.access(path, os.R_OK) and os.path.isfile(path) else "give a file that can be read"


def _address(value: str) -> str | None:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    return None if usable else "give a URL with its scheme, such as http://collector:4317"


def _exporters(value: str) -> str | None:
    names = _split(value)
    known = names == ["none"] or (names and set(names) <= {"otlp", "console"})
    return None if known else "give otlp, console, both with a comma, or none"


def _propagators(value: str) -> str | None:
    return None if set(_split(value)) <= {"tracecontext", "baggage"} else "only tracecontext is spoken here"


def _split(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]


_SAMPLERS = ("always_on", "always_off", "traceidratio")
_OTLP: dict[str, Check] = {
    "CERTIFICATE": _file,
    "CLIENT_CERTIFICATE": _file,
    "CLIENT_KEY": _file,
    "COMPRESSION": _one_of("gzip", "deflate", "none"),
    "ENDPOINT": _address,
    "HEADERS": _pairs,
    "INSECURE": _one_of("true", "false"),
    "PROTOCOL": _one_of("grpc", "http/protobuf"),
    "TIMEOUT": _number(0.001, 3600, "seconds, at most 3600"),
}
_LIMITS = ("ATTRIBUTE", "SPAN_ATTRIBUTE", "EVENT_ATTRIBUTE", "LINK_ATTRIBUTE", "SPAN_EVENT", "SPAN_LINK")
_GENERAL: dict[str, Check] = {  # read whether traces are on or not
    "OTEL_SDK_DISABLED": _one_of("true", "false"),
    "OTEL_TRACES_EXPORTER": _exporters,
    "OTEL_PROPAGATORS": _propagators,
    "OTEL_RESOURCE_ATTRIBUTES": _pairs,
    "OTEL_SERVICE_NAME": lambda value: None,
}
_TRACES: dict[str, Check] = {
    "OTEL_TRACES_SAMPLER": _one_of(*_SAMPLERS, *(f"parentbased_{name}" for name in _SAMPLERS)),
    "OTEL_TRACES_SAMPLER_ARG": _number(0, 1, "a number from 0 to 1"),
    **{f"OTEL_EXPORTER_OTLP_{scope}{name}": check for scope in ("", "TRACES_") for name, check in _OTLP.items()},
    **{f"OTEL_BSP_{name}": _whole(1) for name in ("SCHEDULE_DELAY", "EXPORT_TIMEOUT")},
    **{f"OTEL_BSP_MAX_{name}_SIZE": _whole(1) for name in ("QUEUE", "EXPORT_BATCH")},
    **{f"OTEL_{name}_COUNT_LIMIT": _whole(0) for name in _LIMITS},
    **{f"OTEL_{name}_VALUE_LENGTH_LIMIT": _whole(0) for name in ("ATTRIBUTE", "SPAN_ATTRIBUTE")},
}
CHECKS = _GENERAL | _TRACES
_READ_BY_SDK = ("OTEL_PYTHON_", "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS")
_SWITCHES = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def trace_config(environ: MutableMapping[str, str]) -> TraceConfig:
    """Return what the variables ask for. Afterwards `environ` means the same to OpenTelemetry: values have no white
    space around them, and empty variables, which count as unset, are removed."""
    for name in [name for name in environ if name.startswith(PREFIX)]:
        value = environ.pop(name).strip()
        if value:
            environ[name] = value
    names = sorted(name for name in environ if name.startswith(PREFIX))
    if not names:
        return TraceConfig()
    exporters, protocol = _wanted(environ), _of(environ, "PROTOCOL", "grpc").lower()
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return TraceConfig()
    faults = [f"{name}: {fault}" for name in names if name in CHECKS and (fault := CHECKS[name](environ[name]))]
    faults += _together(environ, protocol) if exporters and not faults else []
    warnings = [*_unused(names), *_without_traces(environ, names, exporters), *_ratio(environ)]
    return TraceConfig(exporters, protocol, tuple(warnings), tuple(faults))


def _of(environ: MutableMapping[str, str], name: str, default: str) -> str:
    """Return a variable of the exporter's: the one for traces, or else the one for everything."""
    general = environ.get(f"OTEL_EXPORTER_OTLP_{name}", default)
    return environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}", general)


def _wanted(environ: MutableMapping[str, str]) -> tuple[str, ...]:
    """Return the exporters: those that are named, or OTLP's where an endpoint is given."""
    asked = next((name for name in _SWITCHES if name in environ), None)
    named = tuple(_split(environ.get("OTEL_TRACES_EXPORTER", "otlp")))
    return () if asked is None or named == ("none",) else named


def _together(environ: MutableMapping[str, str], protocol: str) -> Iterator[str]:
    """Yield what is wrong with values that are right alone."""
    compression = _of(environ, "COMPRESSION", "none").lower()
    if protocol == "grpc" and compression == "deflate":
        yield "OTEL_EXPORTER_OTLP_COMPRESSION: deflate is for http/protobuf; give gzip or none"
    if protocol == "grpc" and compression == "none":  # which its exporter does not know as a word
        for scope in ("", "TRACES_"):
            environ.pop(f"OTEL_EXPORTER_OTLP_{scope}COMPRESSION", None)
    if _of(environ, "CLIENT_CERTIFICATE", "") and not _of(environ, "CERTIFICATE", ""):  # read only then
        yield "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: needs OTEL_EXPORTER_OTLP_CERTIFICATE"
    if bool(_of(environ, "CLIENT_CERTIFICATE", "")) != bool(_of(environ, "CLIENT_KEY", "")):
        yield "OTEL_EXPORTER_OTLP_CLIENT_KEY: set OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and it, or neither"
    if int(environ.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)) > int(environ.get("OTEL_BSP_MAX_QUEUE_SIZE", 2048)):
        yield "OTEL_BSP_MAX_EXPORT_BATCH_SIZE: must not exceed OTEL_BSP_MAX_QUEUE_SIZE"
    if environ.get("OTEL_TRACES_SAMPLER", "").endswith("traceidratio") and "OTEL_TRACES_SAMPLER_ARG" not in environ:
        yield "OTEL_TRACES_SAMPLER_ARG: give the ratio of traces to sample, from 0 to 1"


def _unused(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the variables that nothing here reads."""
    known = _standard()
    for name in names:
        if name in CHECKS or name.startswith(_READ_BY_SDK):
            continue
        if name in known:
            yield name, f"{name} has no effect: of OpenTelemetry's signals only traces are sent"
        elif near := get_close_matches(name, sorted(CHECKS), n=1, cutoff=0.85):
            yield name, f"{name} is not a variable of OpenTelemetry; did you mean {near[0]}?"


def _standard() -> set[str]:
    """Return the variables of OpenTelemetry's API and SDK."""
    import opentelemetry.environment_variables as api
    import opentelemetry.sdk.environment_variables as sdk

    return {name for module in (api, sdk) for name in vars(module) if name.startswith(PREFIX)}


def _without_traces(
    environ: MutableMapping[str, str], names: list[str], exporters: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """Yield the variables that shape traces where nothing turns them on, or off."""
    if exporters or "OTEL_TRACES_EXPORTER" in environ:
        return
    for name in names:
        if name in _TRACES:
            yield name, f"{name} has no effect: no OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_TRACES_EXPORTER turns traces on"


def _ratio(environ: MutableMapping[str, str]) -> Iterator[tuple[str, str]]:
    sampler = environ.get("OTEL_TRACES_SAMPLER", "")
    if sampler and not sampler.endswith("traceidratio") and (name := "OTEL_TRACES_SAMPLER_ARG") in environ:
        yield name, f"{name} has no effect: the sampler {sampler} takes no ratio"
