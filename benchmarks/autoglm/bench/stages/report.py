"""The costs of stages, as JSON for `autoglm plan` and as a table."""

import json
from collections.abc import Mapping
from typing import Any

from autoglm.bench.plan.costs import PassCost
from autoglm.bench.smoke.report import machine_lines
from autoglm.bench.stages.bench import MeasuredStages


def as_json(found: Mapping[str, Any], measured: MeasuredStages) -> str:
    """Return everything as JSON."""
    errors = {name: round(error, 4) for name, error in measured.errors.items()}
    return json.dumps({**found, "costs": measured.costs.model_dump(), "fit_errors": errors}, indent=2) + "\n"


def as_markdown(found: Mapping[str, Any], measured: MeasuredStages) -> str:
    """Return the table with what it takes to read it."""
    costs, errors = measured.costs, measured.errors
    vision, speech, decoder, gateway = costs.vision, costs.speech, costs.decoder, costs.gateway
    lines = [
        f"# {found['benchmark']}, {found['date']}",
        "",
        *machine_lines(found),
        f"- Model {found['model']}; milliseconds of CPU of one thread; gateway and calls: what single requests to a "
        "mesh take longer",
        "- A pass takes the sum of what any pass costs, its tokens (pictures, seconds of sound), and the earlier "
        "tokens that they see",
        "",
        "| Pass | A pass | A token, picture or second | 1000 tokens of context | Largest error of the fit |",
        "|---|---|---|---|---|",
        _row("vision", vision.forward, errors),
        _row("speech", speech.forward, errors),
        _row("prefill", decoder.prefill, errors),
        _row("decode", decoder.decode, errors),
        "",
        "| Stage | ms |",
        "|---|---|",
        f"| gateway, a request | {_ms(gateway.request_s)} |",
        f"| gateway, a token | {_ms(gateway.token_s)} |",
        f"| gateway, a request: CPU | {_ms(gateway.request_cpu_s)} |",
        f"| gateway, a token: CPU | {_ms(gateway.token_cpu_s)} |",
        f"| picture: call | {_ms(vision.hop_s)} |",
        f"| picture: preprocessing | {_ms(vision.preprocess_s)} |",
        f"| recording: call | {_ms(speech.hop_s)} |",
        f"| recording: preprocessing of a second | {_ms(speech.preprocess_s)} |",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, cost: PassCost, errors: Mapping[str, float]) -> str:
    figures = (cost.base_s, cost.token_s, 1000 * cost.context_s)
    return f"| {name} | {' | '.join(map(_ms, figures))} | {errors[name]:.0%} |"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3f}"
