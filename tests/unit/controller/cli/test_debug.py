"""`ctl debug decode` as a person calls it."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backplane.errors import UsageError
from controller.cli.debug import bytes_of_hex, run_decode

Ctl = Callable[..., tuple[int, str, str]]

VECTORS: dict[str, dict[str, Any]] = {
    vector["name"]: vector
    for vector in json.loads(
        (Path(__file__).parents[3] / "golden" / "vectors.json").read_text(encoding="utf-8")
    )
}
LIST = VECTORS["lid1_parameter_list"]["hex"]
SENSE = "70 00 05 00 00 00 00 0a 00 00 00 00 26 07 00 80 00 10"


def test_a_list_is_shown_as_json(ctl: Ctl) -> None:
    code, out, err = ctl("debug", "decode", "--hex", LIST, "--output", "json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["kind"] == "lid1"
    assert document["segment_descriptors"][0]["type_name"] == "block to stream"


def test_a_list_is_shown_as_a_table(ctl: Ctl) -> None:
    code, out, _ = ctl("debug", "decode", "--hex", LIST)
    assert code == 0
    assert "EXTENDED COPY(LID1) parameter list, 116 bytes" in out
    assert "block to stream from CSCD 0 to CSCD 1" in out
    assert "destination (2x)" in out


def test_a_list_is_shown_as_json_lines(ctl: Ctl) -> None:
    code, out, _ = ctl("debug", "decode", "--hex", LIST, "--output", "jsonl")
    kinds = [json.loads(line)["message_type"] for line in out.splitlines()]
    assert code == 0
    assert kinds == ["lid1", *["cscd_descriptor"] * 2, *["segment_descriptor"] * 2]


def test_sense_data_are_shown_in_words(ctl: Ctl) -> None:
    code, out, _ = ctl("debug", "decode", "--hex", SENSE)
    assert code == 0
    assert "UNSUPPORTED TARGET DESCRIPTOR TYPE CODE" in out
    assert "byte 16 of the parameter list" in out


def test_a_file_may_hold_the_bytes_or_their_digits(ctl: Ctl, tmp_path: Path) -> None:
    binary, text = tmp_path / "list.bin", tmp_path / "list.hex"
    binary.write_bytes(bytes.fromhex(LIST))
    text.write_text(f"0x{LIST}\n", encoding="ascii")
    for file in (binary, text):
        code, out, _ = ctl("debug", "decode", str(file), "--output", "json")
        assert code == 0
        assert json.loads(out)["bytes"] == 116


def test_standard_input_is_a_file_too(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = SimpleNamespace(buffer=io.BytesIO(bytes.fromhex(LIST)))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, out, _ = ctl("debug", "decode", "-", "--as", "lid1", "--output", "json")
    assert code == 0
    assert json.loads(out)["bytes"] == 116


def test_an_empty_list_is_no_error(ctl: Ctl) -> None:
    code, out, _ = ctl("debug", "decode", "--hex", "")
    assert code == 0
    assert "PARAMETER LIST LENGTH = 0" in out


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        ("de ad be ef", "PARAMETER LIST LENGTH ERROR"),
        (LIST[:-3], "116 bytes, 115 were sent"),
        (LIST.replace("e4 00", "e0 00"), "UNSUPPORTED TARGET DESCRIPTOR TYPE CODE"),
        (LIST.replace("10 00 00 08", "15 00 00 08"), "26h/09h"),
        ("01 08" + LIST[5:], "LIST ID USAGE 01b is reserved"),
    ],
)
def test_rubbish_is_refused_with_the_sense_of_a_copy_manager(
    ctl: Ctl, digits: str, words: str
) -> None:
    code, out, err = ctl("debug", "decode", "--hex", digits)
    assert (code, out) == (1, "")
    assert words in err
    assert "the copy manager answers: ILLEGAL REQUEST" in err
    assert "Traceback" not in err


def test_a_refusal_is_an_object_for_programs(ctl: Ctl) -> None:
    code, _, err = ctl("debug", "decode", "--hex", "deadbeef", "--output", "json")
    told = json.loads(err.splitlines()[-1])
    assert (code, told["code"]) == (1, 1)
    assert "1Ah/00h" in told["hint"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sense", "sense data of 4 bytes"),
        ("status-lid1", "announced"),
        ("cdb", "a CDB of 4 bytes"),
        ("segment", "cut short"),
        ("cscd", "cut short"),
    ],
)
def test_bytes_that_are_not_what_as_says_are_refused(ctl: Ctl, kind: str, words: str) -> None:
    code, _, err = ctl("debug", "decode", "--hex", "deadbeef", "--as", kind)
    assert code == 1
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hex", "0g"), "is no hex digit"),
        (("--hex", "012"), "last byte has only one"),
        (("/no/such/file",), "cannot read /no/such/file"),
        ((), "give either --hex or a FILE"),
        (("file", "--hex", "00"), "give either --hex or a FILE"),
        (("--hex", "00", "--as", "poem"), "poem"),
    ],
)
def test_input_that_cannot_be_read_is_exit_code_2(
    ctl: Ctl, arguments: tuple[str, ...], words: str
) -> None:
    code, out, err = ctl("debug", "decode", *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_a_folder_is_no_file(ctl: Ctl, tmp_path: Path) -> None:
    code, _, err = ctl("debug", "decode", str(tmp_path))
    assert code == 2
    assert "cannot read" in err


def test_a_file_that_is_too_long_is_refused(
    ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `controller.cli.debug` as an attribute is the command group; the module goes by its import.
    monkeypatch.setattr(importlib.import_module("controller.cli.debug"), "INPUT_BYTES_MAX", 100)
    file = tmp_path / "long"
    file.write_bytes(bytes(101))
    code, _, err = ctl("debug", "decode", str(file))
    assert code == 2
    assert "longer than" in err


def test_limits_decide_whether_a_list_is_refused(ctl: Ctl) -> None:
    """14h can be decoded, but our mover does not carry it out."""
    register = VECTORS["seg_14_register_key"]["hex"]
    digits = f"01000000 00000000 0000001c 00000000 {register}"
    assert ctl("debug", "decode", "--hex", digits)[0] == 0
    code, _, err = ctl("debug", "decode", "--hex", digits, "--limits", "mover")
    assert code == 1
    assert "register persistent reservation key" in err


def test_the_help_tells_the_exit_codes(ctl: Ctl) -> None:
    code, out, _ = ctl("debug", "decode", "--help")
    assert code == 0
    assert "exit code 1" in out
    assert "exit code 2" in out


@pytest.mark.parametrize(
    "text", ["e400", "E4 00", "0xe4 0x00", "e4:00", "0xE4,0x00", "e4-00\n", "e4_00"]
)
def test_hex_digits_may_be_written_in_many_ways(text: str) -> None:
    assert bytes_of_hex(text) == b"\xe4\x00"


def test_hex_digits_that_are_none_are_named() -> None:
    with pytest.raises(UsageError, match="'x' is no hex digit"):
        bytes_of_hex("e4x0")


def test_run_decode_takes_plain_arguments() -> None:
    assert run_decode(bytes.fromhex(SENSE))["kind"] == "sense"
    assert run_decode(bytes.fromhex(SENSE), kind="sense", limits="disk")["sense_key"] == 5
