"""Writes the dashboards in deploy/grafana: python tools/dashboards.py, or with --check, which only compares.

A panel is a row of `DASHBOARDS`: its title, its unit in Grafana's words, and its queries with their legends.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import common, prometheus, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable, Row
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef

FOLDER = Path(__file__).resolve().parents[1] / "deploy/grafana"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH, HEIGHT = 8, 7  # of 24 columns

Panel = tuple[str, str, Sequence[tuple[str, str]]]
Rows = Mapping[str, Sequence[Panel]]


def rate(metric: str, by: str, matchers: str = "") -> str:
    """Return the query for events per second."""
    return f"sum by ({by}) (rate({metric}{{{_with(matchers)}}}[$__rate_interval]))"


def quantiles(metric: str, by: str = "", matchers: str = "") -> list[tuple[str, str]]:
    """Return the queries for the median and the 95th percentile of a histogram."""
    labels, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    buckets = rate(f"{metric}_bucket", labels, matchers)
    return [(f"histogram_quantile({q}, {buckets})", f"{legend}p{q * 100:g}") for q in (0.5, 0.95)]


def share(part: str, whole: str) -> str:
    """Return the query for one rate as a share of another."""
    return f"{part} / {whole}"


def value(metric: str, how: str, by: str, matchers: str = "") -> str:
    """Return the query for a gauge: `how` is sum, min or max."""
    return f"{how} by ({by}) ({metric}{{{_with(matchers)}}})"


def _with(matchers: str) -> str:
    return ",".join(filter(None, ('namespace=~"$namespace"', matchers)))


_OURS = 'method!="other"'
_FAILED = f'{_OURS},code=~"5..|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED"'
_LAST_TOKEN = value("ray_autoglm_last_token_timestamp_seconds", "max", "replica")
_CALLS = 'method!~".+/(Describe|Healthz|ListApplications)"'  # which are health polls
_ENCODERS = 'application=~"vision|speech"'

DASHBOARDS: Mapping[str, tuple[str, Rows]] = {
    "overview": (
        "AutoGLM: overview",
        {
            "Requests": [
                ("Requests by method", "reqps", [(rate("autoglm_requests_total", "method", _OURS), "{{method}}")]),
                (
                    "Share of failures",
                    "percentunit",
                    [
                        (
                            share(
                                rate("autoglm_requests_total", "api", _FAILED),
                                rate("autoglm_requests_total", "api", _OURS),
                            ),
                            "{{api}}",
                        )
                    ],
                ),
                ("Errors by type", "reqps", [(rate("autoglm_request_errors_total", "code"), "{{code}}")]),
                (
                    "In progress",
                    "short",
                    [(value("autoglm_requests_in_progress", "sum", "instance"), "{{instance}}")],
                ),
                ("Rejected, by limit", "reqps", [(rate("autoglm_requests_rejected_total", "reason"), "{{reason}}")]),
                ("Clients that left", "reqps", [(rate("autoglm_requests_aborted_total", "api"), "{{api}}")]),
            ],
            "Latency": [
                ("Time to first token", "s", quantiles("autoglm_time_to_first_token_seconds")),
                ("Between tokens", "s", quantiles("autoglm_inter_token_latency_seconds")),
                ("Whole answer", "s", quantiles("autoglm_e2e_request_latency_seconds")),
            ],
            "Parts": [
                (
                    "Applications that answer",
                    "short",
                    [(value("autoglm_upstream_up", "min", "application"), "{{application}}")],
                ),
                ("Memory of gateways", "bytes", [(value("process_resident_memory_bytes", "max", "job"), "{{job}}")]),
                (
                    "Versions",
                    "short",
                    [(value("autoglm_build_info", "count", "application, version"), "{{application}} {{version}}")],
                ),
            ],
        },
    ),
    "modalities": (
        "AutoGLM: modalities",
        {
            "Answers": [
                ("Time to first token, by media", "s", quantiles("autoglm_time_to_first_token_seconds", "media")),
                ("Tokens, by kind", "short", [(rate("autoglm_usage_tokens_total", "kind"), "{{kind}}")]),
                ("Fetching media", "s", quantiles("autoglm_media_fetch_seconds")),
            ],
            "Encoders": [
                (
                    "Time to an embedding that was not cached",
                    "s",
                    quantiles("autoglm_media_encode_seconds", "modality", 'cache="miss"'),
                ),
                (
                    "In progress",
                    "short",
                    [(value("ray_autoglm_encoder_requests_in_progress", "sum", "application"), "{{application}}")],
                ),
                ("Stages", "s", quantiles("ray_autoglm_encoder_stage_seconds", "stage")),
                ("Batch size", "short", quantiles("ray_autoglm_encoder_batch_size", "application")),
                (
                    "Calls that failed",
                    "reqps",
                    [
                        (
                            rate("ray_autoglm_failed_calls_total", "application, code", _ENCODERS)
                            + " or "
                            + rate(
                                "ray_serve_num_grpc_requests_total",
                                "application, status_code",
                                f'{_ENCODERS},{_CALLS},status_code!="OK"',
                            ),
                            "{{application}} {{code}}{{status_code}}",
                        )
                    ],
                ),
                ("Mean gate of answers", "percentunit", quantiles("autoglm_gate_mean", "modality")),
            ],
        },
    ),
    "cache": (
        "AutoGLM: embedding cache",
        {
            "Use": [
                (
                    "Hit ratio",
                    "percentunit",
                    [
                        (
                            share(
                                rate("autoglm_embedding_cache_hits_total", "modality, tier"),
                                rate("autoglm_embedding_cache_queries_total", "modality, tier"),
                            ),
                            "{{modality}} {{tier}}",
                        )
                    ],
                ),
                (
                    "Where embeddings come from",
                    "ops",
                    [(rate("autoglm_media_encode_seconds_count", "cache"), "{{cache}}")],
                ),
                (
                    "Bytes in gateways",
                    "bytes",
                    [(value("autoglm_embedding_cache_bytes", "sum", "instance"), "{{instance}}")],
                ),
                (
                    "Entries in gateways",
                    "short",
                    [(value("autoglm_embedding_cache_entries", "sum", "instance"), "{{instance}}")],
                ),
                ("Evictions", "ops", [(rate("autoglm_embedding_cache_evictions_total", "instance"), "{{instance}}")]),
            ],
            "Redis": [
                ("Lookups", "s", quantiles("autoglm_embedding_cache_lookup_seconds")),
                ("Failed commands", "ops", [(rate("autoglm_redis_errors_total", "reason"), "{{reason}}")]),
                (
                    "Up, and left alone",
                    "short",
                    [
                        (value("autoglm_redis_up", "min", "instance"), "up {{instance}}"),
                        (value("autoglm_redis_breaker_open", "max", "instance"), "left alone {{instance}}"),
                    ],
                ),
            ],
        },
    ),
    "decoder": (
        "AutoGLM: decoder",
        {
            "Load": [
                ("Running", "short", [(value("ray_autoglm_num_requests_running", "sum", "replica"), "{{replica}}")]),
                ("Waiting", "short", [(value("ray_autoglm_num_requests_waiting", "sum", "replica"), "{{replica}}")]),
                (
                    "Use of the KV cache",
                    "percentunit",
                    [(value("ray_autoglm_kv_cache_usage_perc", "max", "replica"), "{{replica}}")],
                ),
                (
                    "Tokens per second",
                    "short",
                    [
                        (rate("ray_autoglm_prompt_tokens_total", "application"), "prompts"),
                        (rate("ray_autoglm_generation_tokens_total", "application"), "answers"),
                    ],
                ),
                ("Preemptions", "ops", [(rate("ray_autoglm_num_preemptions_total", "replica"), "{{replica}}")]),
                (
                    "Hit ratio of the prefix cache",
                    "percentunit",
                    [
                        (
                            share(
                                rate("ray_autoglm_prefix_cache_hits_total", "replica"),
                                rate("ray_autoglm_prefix_cache_queries_total", "replica"),
                            ),
                            "{{replica}}",
                        )
                    ],
                ),
            ],
            "Steps": [
                ("Duration", "s", quantiles("ray_autoglm_engine_step_seconds")),
                ("Sequences", "short", quantiles("ray_autoglm_engine_batch_size")),
                ("Tokens", "short", quantiles("ray_autoglm_iteration_tokens_total")),
                (
                    "Since the last token",
                    "s",
                    [
                        (
                            f"time() - {value('ray_autoglm_last_token_timestamp_seconds', 'max', 'replica')}",
                            "{{replica}}",
                        )
                    ],
                ),
            ],
            "Answers": [
                ("Queue", "s", quantiles("autoglm_request_queue_time_seconds")),
                ("Prefill", "s", quantiles("autoglm_request_prefill_time_seconds")),
                ("Decode", "s", quantiles("autoglm_request_decode_time_seconds")),
                ("Time per token", "s", quantiles("autoglm_request_time_per_output_token_seconds")),
                ("Tokens of prompts", "short", quantiles("autoglm_request_prompt_tokens")),
                ("Tokens of answers", "short", quantiles("autoglm_request_generation_tokens")),
            ],
        },
    ),
    "ray": (
        "AutoGLM: Ray Serve",
        {
            "Replicas": [
                (
                    "Healthy",
                    "short",
                    [(value("ray_serve_deployment_replica_healthy", "sum", "application"), "{{application}}")],
                ),
                (
                    "Wanted",
                    "short",
                    [(value("ray_serve_autoscaling_target_replicas", "max", "application"), "{{application}}")],
                ),
                (
                    "State: 6 healthy, 5 fewer, 4 more, 3 updating, 2 unhealthy, 1 failed",
                    "short",
                    [(value("ray_serve_deployment_status", "min", "application"), "{{application}}")],
                ),
                (
                    "Tried before",
                    "reqps",
                    [(rate("ray_autoglm_retried_calls_total", "application"), "{{application}}")],
                ),
            ],
            "Calls": [
                (
                    "By status",
                    "reqps",
                    [
                        (
                            rate("ray_serve_num_grpc_requests_total", "application, status_code", _CALLS),
                            "{{application}} {{status_code}}",
                        )
                    ],
                ),
                ("Duration", "ms", quantiles("ray_serve_grpc_request_latency_ms", "application", _CALLS)),
            ],
        },
    ),
}


def panel(title: str, unit: str, queries: Sequence[tuple[str, str]]) -> timeseries.Panel:
    """Return one panel."""
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    built = timeseries.Panel().title(title).unit(unit).datasource(SOURCE).span(WIDTH).height(HEIGHT).min(0)
    built = built.legend(legend.show_legend(True))
    for number, (expression, name) in enumerate(queries):
        query = prometheus.Dataquery().expr(expression).legend_format(name).ref_id(chr(ord("A") + number))
        built = built.with_target(query.exemplar(True))
    return built


def dashboard(uid: str, title: str, rows: Rows) -> str:
    """Return a dashboard as JSON."""
    built = Dashboard(title).uid(f"autoglm-{uid}").tags(["autoglm"]).refresh("30s").time("now-1h", "now").readonly()
    built = built.with_variable(DatasourceVariable("datasource").type("prometheus"))
    namespaces = QueryVariable("namespace").datasource(SOURCE).query("label_values(autoglm_build_info, namespace)")
    built = built.with_variable(namespaces.include_all(True).all_value(".*").multi(True))
    for name, panels in rows.items():
        built = built.with_row(Row(name))
        for each in panels:
            built = built.with_panel(panel(*each))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def files() -> Mapping[Path, str]:
    """Return the text of each file."""
    return {FOLDER / f"{uid}.json": dashboard(uid, *content) for uid, content in DASHBOARDS.items()}


def main(check: bool) -> int:
    """Write or compare; return the exit status, 1 for a file that is not current."""
    old = [path for path, text in files().items() if not path.is_file() or path.read_text() != text]
    for path in old:
        print(f"{path.name}: {'not current, run python tools/dashboards.py' if check else 'written'}")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files()[path])
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
