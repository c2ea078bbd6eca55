"""Log lines: what they contain and what they never contain."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from backplane.errors import ConfigError
from backplane.runtime.logs import close_logs, setup_logs

logger = logging.getLogger("a.module")


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    close_logs()
    logging.getLogger().setLevel(level)


def lines(folder: Path, form: Literal["text", "json"], level: str = "info") -> Path:
    file = folder / "x.log"
    setup_logs("tester", level=level, format=form, file=file)
    return file


def test_a_text_line_has_time_level_logger_message_and_extras(tmp_path: Path) -> None:
    file = lines(tmp_path, "text")
    logger.info("item %d leased", 7, extra={"item": 7, "mover": "m1"})
    (line,) = file.read_text().splitlines()
    assert line.endswith("Z INFO    a.module: item 7 leased item=7 mover=m1")
    assert line[4] == "-"
    assert line[10] == "T"


def test_a_json_line_has_the_fields(tmp_path: Path) -> None:
    file = lines(tmp_path, "json")
    logger.warning("item leased", extra={"item": 7, "path": tmp_path, "level": "no"})
    fields = json.loads(file.read_text())
    assert fields.pop("ts").endswith("Z")
    assert fields == {
        "level": "warning",
        "process": "tester",
        "logger": "a.module",
        "msg": "item leased",
        "item": 7,
        "path": str(tmp_path),
    }


@pytest.mark.parametrize("form", ["text", "json"])
def test_payloads_and_secrets_are_not_logged(tmp_path: Path, form: Literal["text", "json"]) -> None:
    file = lines(tmp_path, form)
    logger.info(
        "x", extra={"data": b"PAYLOAD", "secret": "SECRET", "tag": "SECRET", "n": "y" * 9999}
    )
    text = file.read_text()
    assert "PAYLOAD" not in text
    assert "SECRET" not in text
    assert "(7 bytes)" in text
    assert len(text) < 4000


def test_nobody_can_forge_a_line(tmp_path: Path) -> None:
    file = lines(tmp_path, "text")
    logger.info("name %s", "x\n2026-01-01 ERROR forged\x1b[2J", extra={"other": "a\r\nb\u2028c"})
    assert len(file.read_text().splitlines()) == 1
    assert "\x1b" not in file.read_text()


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_exception_comes_with_its_trace(tmp_path: Path, form: Literal["text", "json"]) -> None:
    file = lines(tmp_path, form)
    try:
        int("oops")
    except ValueError:
        logger.exception("it failed")
    assert "Traceback" in file.read_text()
    assert "oops" in file.read_text()


def test_the_level_is_respected_and_the_newest_setup_counts(tmp_path: Path) -> None:
    first = lines(tmp_path, "text", level="error")
    logger.warning("quiet")
    second = tmp_path / "second.log"
    setup_logs("tester", level="debug", file=second)
    logger.debug("loud")
    assert first.read_text() == ""
    assert "loud" in second.read_text()


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logs("tester")
    logger.info("hello")
    close_logs()
    assert "hello" in capsys.readouterr().err


def test_bad_settings_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="log level"):
        setup_logs("tester", level="loud")
    with pytest.raises(ConfigError, match="No such file"):
        setup_logs("tester", file=tmp_path / "none" / "x.log")
