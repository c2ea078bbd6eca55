"""Logging: one line per event, as text for people or JSON lines for machines, on stderr or in a file.

Facts belong into `extra`, not into the sentence:

    _logger.info("item leased", extra={"item": 7, "mover": "m1"})
    text  2026-01-11T10:43:48.123Z INFO    controller.service: item leased item=7 mover=m1
    json  {"ts": "2026-01-11T10:43:48.123Z", "level": "info", "logger": "...", "msg": "item leased", "item": 7, ...}

Payloads and keys never reach a log: bytes are shown as their length only, and names that sound like secrets are hidden.
Control characters in a text line are escaped, so that nobody can forge a line by choosing a name.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from backplane.errors import ConfigError

LEVELS: Final = ("debug", "info", "warning", "error")
VALUE_CHARACTERS_MAX: Final = 2000
HIDDEN: Final = frozenset({"secret", "tag", "key", "secret_key", "password", "token", "grant"})

# What every record has; anything else came in by `extra`.
_OWN: Final = frozenset(
    logging.LogRecord("", 0, "", 0, "", None, None).__dict__.keys() | {"message", "asctime"}
)
_handler: logging.Handler | None = None
_ESCAPES: Final = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))},
    0x0A: "\\n",
    0x09: "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def setup_logs(
    name: str,
    *,
    level: str = "info",
    format: Literal["text", "json"] = "text",  # noqa: A002 - the word of the configuration
    file: Path | None = None,
) -> logging.Handler:
    """Send the logs of this process to stderr or `file`; `name` goes into every JSON line as `process`.

    May be called again; the newest call counts.  A file that is moved away (logrotate) is made anew.
    """
    global _handler  # noqa: PLW0603 - there is one root logger per process
    if level not in LEVELS:
        raise ConfigError([f"log level {level!r}: one of {', '.join(LEVELS)}"])
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            handler = logging.handlers.WatchedFileHandler(file, encoding="utf-8")
        except OSError as error:
            raise ConfigError([f"log file {file}: {error.strerror}"]) from error
    handler.setFormatter(_JsonFormatter(name) if format == "json" else _TextFormatter())
    root = logging.getLogger()
    close_logs()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    _handler = handler
    return handler


def close_logs() -> None:
    """Take back what `setup_logs` did."""
    global _handler  # noqa: PLW0603
    if _handler is not None:
        logging.getLogger().removeHandler(_handler)
        logging.captureWarnings(capture=False)
        _handler.close()
        _handler = None


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: "(hidden)" if name in HIDDEN else _shown(value)
        for name, value in record.__dict__.items()
        if name not in _OWN
    }


def _shown(value: Any) -> Any:
    """What may be printed of a value."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(value)} bytes)"
    text = str(value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[:VALUE_CHARACTERS_MAX] + "..."


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extras = "".join(f" {name}={value}" for name, value in _extras(record).items())
        message = f"{record.name}: {record.getMessage()}{extras}".translate(_ESCAPES)
        line = f"{_timestamp(record)} {record.levelname:<7} {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        fields |= {name: value for name, value in _extras(record).items() if name not in fields}
        if record.exc_info:
            fields["exc"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)
