"""Whether every request is accounted for on both sides: what the clients sent, and what the gateways counted."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .gateways import Counted, Gateways
from .load import Ended, gone
from .network import GATEWAYS

UNTYPED = ("untyped", "cut off", "ends early", "no answer in time")


@dataclass(frozen=True, slots=True)
class MethodAccount:
    """A method's requests: `sent` by the clients, `logged` by the gateways, how many one side has and the other has
    not, and how many have another code on the other side."""

    api: str
    method: str
    sent: int
    logged: int
    missing: int
    differing: int


def accounts(ended: Sequence[Ended], entries: Iterable[tuple[str, tuple[str, str, str]]]) -> list[MethodAccount]:
    """Compare both sides, by method."""
    reached = [each for each in ended if each.reached]
    logged = list(entries)
    methods = sorted({(each.api, each.method) for each in reached} | {counted[:2] for _, counted in logged})
    return [
        _account(
            api,
            method,
            [each for each in reached if (each.api, each.method) == (api, method)],
            [(request_id, counted[2]) for request_id, counted in logged if counted[:2] == (api, method)],
        )
        for api, method in methods
    ]


def _account(api: str, method: str, sent: Sequence[Ended], logged: Sequence[tuple[str, str]]) -> MethodAccount:
    if api == "http":  # each has its id
        codes = dict(logged)
        known = [each for each in sent if each.request_id in codes]
        missing = len(sent) - len(known) + len(logged) - len(known)
        differing = sum(codes[each.request_id] not in gone(each) for each in known)
    else:
        missing = abs(len(sent) - len(logged))
        differing = _surplus(sent, Counter(code for _, code in logged))
    return MethodAccount(api, method, len(sent), len(logged), missing, differing)


def _surplus(sent: Sequence[Ended], logged: Mapping[str, int]) -> int:
    """Return how many requests have a code at their clients that no request of the gateways is left for."""
    left, surplus = Counter(logged), 0
    for each in sorted(sent, key=lambda each: len(gone(each))):  # those that may have several codes come last
        code = next((code for code in gone(each) if left[code] > 0), None)
        if code is None:
            surplus += 1
        else:
            left[code] -= 1
    return surplus


def metrics_differ(gateways: Gateways) -> dict[str, int]:
    """Return the series, as text, in which a gateway's metrics and its log differ, and by how much; empty is good."""
    found = dict[str, int]()
    for name in GATEWAYS:
        counted: Counted = gateways.counted(name)
        logged = gateways.logged_in_this_life(name)
        for key in counted.keys() | logged.keys():
            if difference := counted[key] - logged[key]:
                found[" ".join((name, *key))] = difference
    return found


def untyped(ended: Sequence[Ended]) -> list[Ended]:
    """Return the requests that ended without an answer or a typed error."""
    return [each for each in ended if each.outcome.startswith(UNTYPED)]
