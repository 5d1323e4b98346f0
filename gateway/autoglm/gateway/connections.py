"""How many connections the HTTP server holds open, in all and from one address."""

from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from autoglm.gateway.settings import Settings

NETWORK_BITS = 64  # of IPv6: one client has all the addresses of such a network


class ConnectionLimit:
    """Counts open connections. Proxies in `forwarded_allow_ips` have no limit of their own: each stands for many."""

    def __init__(self, settings: Settings) -> None:
        self._most, self._most_of_one = settings.max_connections, settings.max_connections_per_address
        self._any_proxy, self._proxies = settings.forwarded_allow_ips == "*", settings.proxies
        self._open: Counter[str] = Counter()

    def open(self, host: str) -> bool:
        """Count a connection from `host`, also a refused one; return whether it may stay open."""
        source = _source(host)
        self._open[source] += 1
        if self._open.total() > self._most:
            return False
        return self._open[source] <= self._most_of_one or self._is_proxy(host)

    def close(self, host: str) -> None:
        """Forget a connection from `host`."""
        source = _source(host)
        self._open[source] -= 1
        if not self._open[source]:
            del self._open[source]

    def _is_proxy(self, host: str) -> bool:
        return self._any_proxy or (bool(host) and any(ip_address(host) in network for network in self._proxies))


def _source(host: str) -> str:
    """Return what is counted as one client: an IPv4 address, or a network of IPv6."""
    if not host:
        return host
    address: IPv4Address | IPv6Address = ip_address(host)
    if address.version == 4:
        return host
    return str(ip_network((address, NETWORK_BITS), strict=False))
