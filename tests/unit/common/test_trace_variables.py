"""The variables of OpenTelemetry: a wrong value is a fault with the variable's name, and none is ignored silently."""

from pathlib import Path

import pytest

from autoglm.common import environment
from autoglm.common.trace_variables import CHECKS, trace_config

ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.parametrize(
    ("environ", "exporters", "protocol"),
    [
        ({}, (), "grpc"),
        ({"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "a=b"}, (), "grpc"),
        (ON, ("otlp",), "grpc"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector"}, ("otlp",), "grpc"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp",), "grpc"),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ("console", "otlp"), "grpc"),
        (ON | {"OTEL_TRACES_EXPORTER": "none"}, (), "grpc"),
        (ON | {"OTEL_SDK_DISABLED": "True"}, (), "grpc"),
        (ON | {"OTEL_SDK_DISABLED": "false"}, ("otlp",), "grpc"),
        (ON | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ("otlp",), "http/protobuf"),
        (
            ON | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            ("otlp",),
            "http/protobuf",
        ),
        (ON | {"OTEL_TRACES_EXPORTER": "", "OTEL_BSP_MAX_QUEUE_SIZE": " "}, ("otlp",), "grpc"),
    ],
)
def test_what_turns_traces_on(environ: dict[str, str], exporters: tuple[str, ...], protocol: str) -> None:
    found = trace_config(dict(environ))
    assert (found.exporters, found.protocol, found.faults, found.warnings) == (exporters, protocol, (), ())


WRONG = {
    "OTEL_SDK_DISABLED": "yes",
    "OTEL_TRACES_EXPORTER": "zipkin",
    "OTEL_TRACES_SAMPLER": "sometimes",
    "OTEL_TRACES_SAMPLER_ARG": "2",
    "OTEL_PROPAGATORS": "b3",
    "OTEL_RESOURCE_ATTRIBUTES": "deployment",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "tcp",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "my-host:4317",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:port",
    "OTEL_EXPORTER_OTLP_HEADERS": "a-key-without-a-name",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "zstd",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "soon",
    "OTEL_EXPORTER_OTLP_INSECURE": "1",
    "OTEL_EXPORTER_OTLP_CERTIFICATE": "/nonexistent/ca.pem",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/nonexistent/key.pem",
    "OTEL_BSP_SCHEDULE_DELAY": "-1",
    "OTEL_BSP_MAX_QUEUE_SIZE": "many",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1.5",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_a_fault_that_does_not_show_it(name: str) -> None:
    (fault,) = trace_config(ON | {name: WRONG[name]}).faults
    assert fault.startswith(f"{name}: ")
    assert WRONG[name] not in fault.removeprefix(name)


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, "OTEL_TRACES_SAMPLER_ARG"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "deflate"}, "OTEL_EXPORTER_OTLP_COMPRESSION"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "100"}, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
        ({"OTEL_EXPORTER_OTLP_CLIENT_KEY": __file__}, "OTEL_EXPORTER_OTLP_CLIENT_KEY"),
        (
            {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": __file__, "OTEL_EXPORTER_OTLP_CLIENT_KEY": __file__},
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
        ),
    ],
)
def test_values_that_do_not_go_together(environ: dict[str, str], name: str) -> None:
    (fault,) = trace_config(ON | environ).faults
    assert fault.startswith(f"{name}: ")


def test_every_variable_of_the_sdk_that_is_read_is_checked() -> None:
    from opentelemetry.sdk import environment_variables

    standard = {name for name in vars(environment_variables) if name.startswith("OTEL_")}
    read = {
        name
        for name in standard
        if name.startswith(("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_BSP_", "OTEL_SPAN_", "OTEL_TRACES_"))
    }
    assert read <= CHECKS.keys()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINTS": "x"}, "did you mean OTEL_EXPORTER_OTLP_ENDPOINT?"),
        ({"OTEL_TRACE_EXPORTER": "otlp"}, "did you mean OTEL_TRACES_EXPORTER?"),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, "OTEL_TRACES_SAMPLER has no effect"),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, "OTEL_METRICS_EXPORTER has no effect"),
        (ON | {"OTEL_LOGS_EXPORTER": "otlp"}, "OTEL_LOGS_EXPORTER has no effect"),
        (ON | {"OTEL_TRACES_SAMPLER": "always_on", "OTEL_TRACES_SAMPLER_ARG": ".5"}, "takes no ratio"),
    ],
)
def test_what_has_no_effect_is_a_warning(environ: dict[str, str], words: str) -> None:
    """It is removed, so that a child process does not warn again."""
    reviewed = environment.review(environ, environment.GATEWAY)
    assert reviewed.faults == ()
    (warning,) = reviewed.warnings
    assert words in warning
    assert environment.review(environ, environment.GATEWAY).warnings == ()


def test_other_languages_variables_are_left_alone() -> None:
    assert trace_config(ON | {"OTEL_DOTNET_AUTO_HOME": "x", "OTEL_PYTHON_ID_GENERATOR": "random"}).warnings == ()


@pytest.mark.parametrize("reads", [environment.GATEWAY, environment.SERVICES, environment.MESH])
def test_what_serves_does_not_start_with_a_wrong_value(reads: frozenset[str]) -> None:
    environ = {"OTEL_TRACES_EXPORTER": "zipkin"}
    assert environment.review(environ, reads).faults == (
        "OTEL_TRACES_EXPORTER: give otlp, console, both with a comma, or none",
    )
    assert environment.review(environ, environment.COMMANDS).faults == ()


def test_a_certificate_that_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("-")
    assert trace_config(ON | {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(file)}).faults == ()
