"""Unexpected errors are logged by kind: not once a request, and without what a client sent."""

import logging
from collections.abc import Callable

import pytest

from autoglm.common.error_log import FRAMES, KINDS, ErrorLog

logger = logging.getLogger("autoglm.test_error_log")
SECRET = "my PIN is 1234"


def caught(work: Callable[[], object]) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def refuse(text: str) -> None:
    raise ValueError(f"cannot read {text}")


def deep(depth: int) -> None:
    if depth:
        deep(depth - 1)
    raise RuntimeError


def test_one_kind_is_logged_once_a_minute_and_counted_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = ErrorLog(logger, lambda: now[0])
    for second in (0, 1, 59.9, 60, 61):
        now[0] = second
        log.error("a request failed", caught(lambda: refuse(SECRET)))
    first, second_line = (record.getMessage() for record in caplog.records)
    assert first.startswith("a request failed: ValueError\n")
    assert second_line.startswith("a request failed: ValueError (2 more since the last line)\n")
    assert 'in refuse\n    raise ValueError(f"cannot read {text}")' in first
    assert SECRET not in caplog.text


def test_other_types_and_places_are_other_kinds(caplog: pytest.LogCaptureFixture) -> None:
    log = ErrorLog(logger, lambda: 0)
    for work in (
        lambda: refuse("a"),
        lambda: int("b"),
        lambda: [][1],
        lambda: refuse("c"),
        lambda: dict[str, int]()["d"],
    ):
        log.error("failed", caught(work))
    log.error("failed", KeyError("never raised"))
    log.error("failed", KeyError("never raised"))
    assert [record.getMessage().split("\n")[0] for record in caplog.records] == [
        "failed: ValueError",
        "failed: ValueError",
        "failed: IndexError",
        "failed: KeyError",
        "failed: KeyError",
    ]


def test_a_line_and_the_number_of_kinds_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    log = ErrorLog(logger, lambda: 0)
    log.error("failed", caught(lambda: deep(300)))
    assert "in deep" in caplog.text
    assert len(caplog.text.splitlines()) <= 2 * FRAMES + 1
    for number in range(3 * KINDS):
        log.error("failed", type(f"Error{number}", (Exception,), {})())
    assert len(log._seen) == KINDS
