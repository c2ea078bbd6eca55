"""Fields within bytes."""

from __future__ import annotations

import pytest

from backplane.scsi.layout import Field, flag, offset_of, read_fields, whole, write_fields

LAYOUT = (
    flag("low", 0),
    flag("high", 0, bit=7),
    Field("middle", 0, 1, 3, low_bit=2),
    whole("number", 1, 3),
    Field("signed", 4, 3, 24, is_signed=True),
)


def test_fields_of_one_byte_do_not_disturb_each_other() -> None:
    values = {"low": 1, "high": 0, "middle": 5, "number": 0x010203, "signed": -2}
    data = write_fields(LAYOUT, 8, values)
    assert bytes(data) == bytes.fromhex("15 010203 fffffe 00")
    assert read_fields(LAYOUT, bytes(data)) == values


def test_reserved_bits_are_ignored_when_read() -> None:
    read = read_fields(LAYOUT, b"\xff" * 8)
    assert read == {"low": 1, "high": 1, "middle": 7, "number": 0xFFFFFF, "signed": -1}


@pytest.mark.parametrize(("value", "fits"), [(-(1 << 23), True), (1 << 23, False), (0, True)])
def test_a_signed_field_knows_its_range(value: int, fits: bool) -> None:
    assert LAYOUT[4].holds(value) is fits


def test_a_value_that_does_not_fit_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="number"):
        LAYOUT[3].put(bytearray(8), 1 << 24)


def test_the_offset_of_a_field_is_found_by_name() -> None:
    assert offset_of(LAYOUT, "signed") == 4


def test_keys_are_shown_as_hex_of_full_width() -> None:
    assert whole("key", 0, 8, is_key=True).shown(0x1122) == "0000000000001122"
    assert flag("bit", 0).shown(True) == 1
