"""Record 0: an ANSI label for programs, and for people a text that keeps to what the code does."""

from __future__ import annotations

import re
from typing import Any

import pytest

from backplane.errors import VolumeError
from backplane.tape_format import decode_vol1, encode_vol1
from backplane.tape_format.content import PartHeader, PartTrailer, VolumeFacts
from backplane.tape_format.first_record import FIRST_RECORD_BYTES_MAX, encode_first_record
from backplane.tape_format.record import PREFIX_BYTES, RecordType


def test_it_begins_with_the_ansi_label_and_is_read_as_one() -> None:
    record = encode_first_record("LTO001L8")
    assert record[:80] == encode_vol1("LTO001L8")
    assert decode_vol1(record).is_ours
    assert decode_vol1(memoryview(record)).identifier == "LTO001"


def test_what_follows_can_be_read_on_any_terminal() -> None:
    text = encode_first_record("A" * 32)[80:].decode("ascii")
    assert len(text) + 80 <= FIRST_RECORD_BYTES_MAX
    assert all(character.isprintable() or character == "\n" for character in text)
    assert max(map(len, text.splitlines())) <= 120
    assert f"Cartridge {'A' * 32}\n" in text


def test_the_names_it_uses_are_those_of_the_format() -> None:
    text = encode_first_record("A1").decode("ascii")
    known: set[str] = set()
    for cls in (PartHeader, PartTrailer, VolumeFacts):
        fields: dict[str, Any] = cls.__dataclass_fields__
        known |= set(fields)
    named = set(re.findall(r'"([a-z_0-9]+)"', text)) - {"full", "data"}
    assert len(named) > 10
    assert named <= known
    assert f"metadata records: {PREFIX_BYTES} bytes" in text
    assert {"lane", "lanes"} <= named
    kinds = re.search(r"8-9   (.*)", text)
    assert kinds is not None
    assert kinds[1].split(", ") == [
        f"{kind.value} {words}"
        for kind, words in (
            (RecordType.VOLUME_HEADER, "volume header"),
            (RecordType.PART_HEADER, "part header"),
            (RecordType.PART_TRAILER, "part trailer"),
            (RecordType.FILE_MAP, "map of files"),
        )
    ]


@pytest.mark.parametrize("tag", ["", "A" * 33, "Ä1"])
def test_a_barcode_that_no_label_can_hold_is_refused(tag: str) -> None:
    with pytest.raises(VolumeError):
        encode_first_record(tag)
