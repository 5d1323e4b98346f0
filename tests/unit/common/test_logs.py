"""Lines of the log, as text and as JSON, with the ids of the request that they belong to."""

import json
import logging
import sys
import threading
from contextvars import copy_context

import pytest

from autoglm.common import logs, ray_internals, tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"


def labelled(message: str, *arguments: object) -> logging.LogRecord:
    """Return a record as a handler of ours passes it on."""
    record = logging.getLogger("autoglm.x").makeRecord("autoglm.x", 30, "file.py", 7, message, arguments, None)
    assert logs.RequestFilter().filter(record)
    return record


def line(encoding: logs.Encoding, message: str = "it failed: %s", *arguments: object, trace: str | None = TRACE) -> str:
    """Return a line that belongs to request r1."""
    with tracing.belonging_to(tracing.RequestIds("r1", trace)):
        return logs.formatter(encoding).format(labelled(message, *arguments))


def test_text_has_the_ids_before_the_message() -> None:
    assert line("TEXT", "it failed: %s", "here").endswith(f" WARNING autoglm.x: r1 trace_id={TRACE} it failed: here")
    assert line("TEXT", "done", trace=None).endswith(" WARNING autoglm.x: r1 done")


def test_json_has_them_as_keys() -> None:
    found = json.loads(line("JSON", 'a "quoted"\nline'))
    assert (found["request_id"], found["trace_id"], found["message"]) == ("r1", TRACE, 'a "quoted"\nline')
    assert (found["levelname"], found["name"], found["lineno"]) == ("WARNING", "autoglm.x", 7)
    assert "\n" not in line("JSON", "two\nlines")


def test_json_has_a_traceback() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        record = logging.getLogger().makeRecord("x", 40, "f.py", 1, "broken", (), sys.exc_info())
    assert "KeyError: 'x'" in json.loads(logs.formatter("JSON").format(record))["exc_text"]


@pytest.mark.parametrize("encoding", ["TEXT", "JSON"])
def test_a_line_of_no_request_has_no_ids(encoding: str) -> None:
    record = labelled("started")
    assert "r1" not in logs.formatter(encoding).format(record)
    assert not hasattr(record, "request_id")


def test_a_thread_of_many_requests_logs_for_one_at_a_time() -> None:
    found = list[object]()

    def work() -> None:
        with tracing.belonging_to(tracing.RequestIds("r2")):
            found.append(vars(labelled("x"))["request_id"])
        found.append(tracing.current())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["r2", None]


@pytest.mark.parametrize("encoding", ["TEXT", "JSON"])
def test_the_lines_of_a_replica_are_in_serves_log_with_their_ids(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve's own formatters write them."""
    from ray._common.formatters import JSONFormatter
    from ray.serve._private.logging_utils import ServeFormatter

    serve, ours = logging.getLogger("ray.serve"), logging.getLogger("autoglm")
    handler = logging.StreamHandler()
    lines = list[str]()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(handler.format(record)))
    handler.setFormatter(JSONFormatter() if encoding == "JSON" else ServeFormatter("decoder", "abc"))
    monkeypatch.setattr(serve, "handlers", [handler])
    monkeypatch.setattr(serve, "filters", [])
    monkeypatch.setattr(serve, "propagate", False)
    monkeypatch.setattr(serve, "level", logging.INFO)
    monkeypatch.setattr(ours, "parent", ours.parent)
    ray_internals.log_through_serve()
    with tracing.belonging_to(tracing.RequestIds("r1", TRACE)):
        logging.getLogger("autoglm.decoder").warning("a sequence failed: %s", "KeyError")
    (line,) = lines
    if encoding == "TEXT":
        assert line.startswith("WARNING ")
        assert line.endswith(f" decoder abc r1 -- trace_id={TRACE} a sequence failed: KeyError")
    else:
        found = json.loads(line)
        assert (found["request_id"], found["trace_id"], found["levelname"]) == ("r1", TRACE, "WARNING")


def test_a_poll_has_no_line_in_serves_access_log(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.logging_utils import ServeLogAttributeRemovalFilter

    serve, ours, written = logging.getLogger("ray.serve"), logging.getLogger("autoglm"), list[str]()
    handler = logging.StreamHandler()
    handler.addFilter(ServeLogAttributeRemovalFilter())  # as Serve's has it
    monkeypatch.setattr(handler, "emit", lambda record: written.append(record.getMessage()))
    monkeypatch.setattr(serve, "filters", [])
    monkeypatch.setattr(serve, "handlers", [handler])
    monkeypatch.setattr(serve, "level", logging.INFO)
    monkeypatch.setattr(ours, "parent", ours.parent)
    ray_internals.log_through_serve()

    def call(name: str, is_poll: bool) -> None:
        if is_poll:
            logs.omit_access_line()
        logging.getLogger("autoglm.decoder").warning("%s is slow", name)
        serve.info("CALL %s OK", name, extra={"serve_access_log": True})

    for name, is_poll in (("one", False), ("poll", True), ("two", False)):
        copy_context().run(call, name, is_poll)
    assert written == ["one is slow", "CALL one OK", "poll is slow", "two is slow", "CALL two OK"]


def test_a_record_that_has_its_id_keeps_it() -> None:
    """As those of Serve's access log."""
    with tracing.belonging_to(tracing.RequestIds("r1")):
        record = logging.getLogger().makeRecord("x", 20, "f.py", 1, "", (), None, extra={"request_id": "serves"})
        logs.RequestFilter().filter(record)
    assert vars(record)["request_id"] == "serves"
