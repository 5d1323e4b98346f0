"""Writes docs/configuration.md from the settings' definitions: `python -m autoglm.cli.reference`."""

import sys

from pydantic import BaseModel
from pydantic_settings import BaseSettings

from autoglm.decoder.settings import DecoderSettings
from autoglm.gateway.settings import Settings
from autoglm.speech.settings import SpeechSettings
from autoglm.vision.settings import VisionSettings

INTRODUCTION = """# Configuration

`make docs` writes this page from the settings themselves; a test compares them.

Every setting is read once at start. A value out of range is an error that names its variable or key.

- An `AUTOGLM_` variable that nothing reads, such as a misspelled one, is a warning at start and in `autoglm doctor`,
  with the nearest name that exists and without the value. An unknown key in `args` is an error.
- An empty variable is the same as none. White space around a value is ignored. Quotes are part of a value, as docker's
  `--env-file` passes them on, and are an error.
- Names are in capitals. Others are read too, with a warning.
- Kubernetes sets variables such as `AUTOGLM_*_SERVICE_HOST` for each Service of the namespace; they are told from
  settings. A Service called `autoglm-http` or `autoglm-grpc` replaces `AUTOGLM_HTTP_PORT` or `AUTOGLM_GRPC_PORT` by an
  address, and the start then fails: put `enableServiceLinks: false` in the pod's spec.

## Everywhere

| Variable | Default | What it is |
|---|---|---|
| `AUTOGLM_BUNDLE` | the packaged `autoglm-phone-nano` | Folder of the bundle to serve. |
| `AUTOGLM_MODALITIES` | all that the bundle holds | What `autoglm serve` runs: text, vision, speech, with commas. |

`autoglm serve` runs its own services, so `AUTOGLM_SERVE_ADDRESS` and `AUTOGLM_SERVE_SSL_*` have no effect there.

## Commands

| Variable | Default | What it is |
|---|---|---|
| `AUTOGLM_URL` | `http://127.0.0.1:8000` | Address of the server that `autoglm chat` asks. |
| `AUTOGLM_API_KEY` | `EMPTY` | API key that `autoglm chat` and `autoglm bench smoke` send. Servers do not read it. |
"""


OPENTELEMETRY = """## OpenTelemetry

Gateway and services read the standard variables of OpenTelemetry for [traces](operate.md#traces). By default none is
set, and traces are off. A wrong value is an error, and a variable without an effect is a warning. What is named
`OTEL_EXPORTER_OTLP_…` here may also be named `OTEL_EXPORTER_OTLP_TRACES_…`, which has precedence.

| Variable | Default | What it is |
|---|---|---|
"""
_STANDARD = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("empty", "URL of the collector. Setting it turns traces on."),
    "OTEL_TRACES_EXPORTER": ("`otlp` with an endpoint", "`otlp`, `console`, both with a comma, or `none`."),
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("`grpc`", "`grpc` or `http/protobuf`."),
    "OTEL_EXPORTER_OTLP_HEADERS": ("empty", "Headers for the collector, such as a key: `name=value`, with commas."),
    "OTEL_EXPORTER_OTLP_TIMEOUT": ("`10`", "Seconds that sending a batch may take."),
    "OTEL_EXPORTER_OTLP_COMPRESSION": ("`none`", "`gzip`, `none`, or with http/protobuf `deflate`."),
    "OTEL_EXPORTER_OTLP_CERTIFICATE": ("empty", "CA certificates (PEM) for an https: endpoint."),
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": ("empty", "Certificate chain (PEM) to present there."),
    "OTEL_EXPORTER_OTLP_CLIENT_KEY": ("empty", "Its private key (PEM)."),
    "OTEL_TRACES_SAMPLER": (
        "`parentbased_always_on`",
        "`always_on`, `always_off`, `traceidratio`, or one of them after `parentbased_`.",
    ),
    "OTEL_TRACES_SAMPLER_ARG": ("empty", "Ratio of traces, from 0 to 1, that `traceidratio` samples."),
    "OTEL_SERVICE_NAME": ("`autoglm-gateway`, `autoglm-vision` …", "One name for all that read it."),
    "OTEL_RESOURCE_ATTRIBUTES": ("empty", "Attributes of every span: `name=value`, with commas."),
    "OTEL_BSP_*": ("those of the SDK", "Batches of spans: delay, timeout, sizes of the queue and of a batch."),
    "OTEL_SDK_DISABLED": ("`false`", "`true` turns traces off, and also Ray's own metrics where Ray reads it."),
}


def document() -> str:
    """Return the page."""
    applications: dict[str, type[BaseModel]] = {
        "vision": VisionSettings,
        "speech": SpeechSettings,
        "decoder": DecoderSettings,
    }
    standard = "".join(f"| `{name}` | {default} | {text} |\n" for name, (default, text) in _STANDARD.items())
    parts = [
        INTRODUCTION,
        OPENTELEMETRY + standard,
        "## Gateway: environment variables\n",
        _table(Settings, "Variable"),
    ]
    parts += ["## Services: `args` of each application in the Serve config (`deploy/serve.yaml`)\n"]
    for name, settings in applications.items():
        parts += [f"### {name}\n", _table(settings, "Key")]
    return "\n".join(parts)


def _table(settings: type[BaseModel], heading: str) -> str:
    prefix = str(settings.model_config.get("env_prefix", "")) if issubclass(settings, BaseSettings) else ""
    rows = [f"| {heading} | Default | What it is |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        key = f"{prefix}{name.upper()}" if prefix else name
        default = getattr(field.default, "get_secret_value", lambda value=field.default: value)()
        rows.append(f"| `{key}` | {'empty' if default == '' else f'`{default}`'} | {field.description} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
