"""How many connections and calls the gRPC server holds for its clients; the proxy of `autoglm serve` has the same."""

from autoglm.gateway.settings import Settings

MAX_STANDARD_CALLS = 1000  # of gRPC's own methods, health and reflection, at a time
SPARE_STREAMS = 64
HANDSHAKE_MILLISECONDS = 20_000  # for TLS and the first settings of HTTP/2
IDLE_MILLISECONDS = 300_000  # without a call, after which clients reconnect for the next one
KEEPALIVE_MILLISECONDS = 60_000  # between pings, which find out that a client with open calls is gone
_IDENTITY_AND_GZIP = 0b101  # gRPC's bit set of compression algorithms; the bit between is deflate


def max_streams(settings: Settings) -> int:
    """Return the most calls of one connection: a few more than are admitted, so that those are refused in words."""
    return settings.max_concurrent_requests + SPARE_STREAMS


def max_calls(settings: Settings) -> int:
    """Return the most calls of all connections that a proxy passes on, which is more than the gateway admits."""
    return max_streams(settings) + MAX_STANDARD_CALLS


def server_options(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Return the options of a server with a CallInterceptor.

    gRPC itself ends a call with a message above its limit, without details; so that limit is twice ours.
    """
    options = (
        ("grpc.max_receive_message_length", 2 * settings.max_body_bytes),
        ("grpc.per_message_decompression", 0),  # which would have no limit
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_AND_GZIP),
        # gRPC notes each ping too many in 4 kB that stay until the connection is written to. With as many pings as a
        # client likes, it stops reading once too many of its answers are unwritten.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_concurrent_streams", max_streams(settings)),  # a stream costs 16 kB before its call is seen
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MILLISECONDS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
    )
    return options if settings.grpc_socket else options + _connection_options(settings)


def _connection_options(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Return the bounds for clients' own connections; a proxy has one for each call, and closes idle ones itself."""
    return (
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_idle_ms", IDLE_MILLISECONDS),
    )
