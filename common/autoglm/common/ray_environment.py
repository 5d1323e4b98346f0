"""The environment of Ray and Serve that the mesh needs, on a single machine and in a cluster.

It follows from one number: the longest time that an answer may take, `AUTOGLM_MAX_TIMEOUT`.
"""

from autoglm.common.deadlines import grace_seconds

_FIXED = {
    "HF_HUB_OFFLINE": "1",
    "MALLOC_ARENA_MAX": "2",
    # oneDNN keeps a compiled kernel for each shape, of up to 1 MB; the default are 1024.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "512",
    "TRANSFORMERS_VERBOSITY": "error",
    # By default workers run at niceness 15 and starve under any other load.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Otherwise lines wait for 999 others, and are lost with a replica that dies.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    # How old a replica's figures are at most when they are scraped; the default is 10 s.
    "RAY_metrics_report_interval_ms": "2000",
    # Ray's agent forgets a gauge after two such intervals. By default Serve reports a replica's health each 10 s, which
    # most scrapes would miss.
    "RAY_SERVE_STATUS_GAUGE_REPORT_INTERVAL_S": "1",
    # A replica that hangs does not end by being asked to.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # Three checks in a row have to fail. What has died fails them at once; what is busy has 30 s to answer each.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # A busy machine misses the default of 5 s, and Serve then never starts the proxy again.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    # A gateway has one connection; the default allows 100 streams on it.
    "RAY_SERVE_HAPROXY_H2_FE_MAX_CONCURRENT_STREAMS": "1024",
    "RAY_SERVE_HAPROXY_H2_BE_MAX_CONCURRENT_STREAMS": "1024",
}


def ray_environment(max_timeout: float) -> dict[str, str]:
    """Return the variables for answers of at most `max_timeout` seconds."""
    hard_stop = grace_seconds(max_timeout)
    return _FIXED | {
        # Whenever a replica starts or ends, a new HAProxy takes over. The one before may finish its answers until then.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(hard_stop),
        # As long as it may live, and a margin, no other replica gets the port of one that ended: it would be sent what
        # is meant for that one.
        "RAY_SERVE_PORT_QUARANTINE_S": str(hard_stop + 30),
    }
