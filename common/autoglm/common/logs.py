"""Lines of the log: text, or one JSON object each, with the request and the trace that they belong to.

The keys of the JSON are those of Ray's, so that the lines of the gateway and of the services are searched alike.
"""

import json
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Literal

from autoglm.common import tracing

Encoding = Literal["TEXT", "JSON"]

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RequestFilter(logging.Filter):
    """Gives the records of a handler `request_id` and `trace_id` where they belong to a request. It lets all pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Label a record, unless whoever made it has done so."""
        if (ids := tracing.current()) is not None:
            record.__dict__.setdefault("request_id", ids.request_id)
            if ids.trace_id is not None:
                record.__dict__.setdefault("trace_id", ids.trace_id)
        return True


_is_poll: ContextVar[bool] = ContextVar("autoglm_is_poll", default=False)


def omit_access_line() -> None:
    """Leave the running call out of Serve's access log: each gateway polls every service every two seconds. Serve runs
    each call in a task of its own, so nothing else is left out."""
    _is_poll.set(True)


class PollFilter(logging.Filter):
    """Drops the lines of Serve's access log about calls of `omit_access_line`; all other records pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is to be written."""
        return not (_is_poll.get() and getattr(record, "serve_access_log", False))


class TextFormatter(logging.Formatter):
    """A line of text. The ids come before the message."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line without a traceback."""
        ids = [record.request_id] if hasattr(record, "request_id") else []
        ids += [f"trace_id={record.trace_id}"] if hasattr(record, "trace_id") else []
        record.message = " ".join((*ids, record.message))
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """A line with one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "name": record.name,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
            **{name: getattr(record, name) for name in ("request_id", "trace_id") if hasattr(record, name)},
        }
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        return json.dumps(line)


def formatter(encoding: str) -> logging.Formatter:
    """Return what writes lines in an encoding, JSON or text."""
    return JsonFormatter() if encoding == "JSON" else TextFormatter(TEXT)


def log_config(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of Serve's `logging_config` AUTOGLM_LOG_ENCODING sets; nothing, if it is not there."""
    encoding = environ.get("AUTOGLM_LOG_ENCODING", "")
    return {"encoding": encoding.upper()} if encoding else {}


def log_to_stderr(level: str, encoding: Encoding) -> None:
    """Write this process's log to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(encoding))
    handler.addFilter(RequestFilter())
    logging.basicConfig(level=level, handlers=[handler])
