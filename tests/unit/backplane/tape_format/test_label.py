"""The ANSI label."""

from __future__ import annotations

import pytest

from backplane.errors import VolumeError
from backplane.tape_format import decode_vol1, encode_vol1


def test_the_ansi_label_has_its_fields_where_the_standard_wants_them() -> None:
    label = encode_vol1("LTO001L8")
    assert len(label) == 80
    assert label[:4] == b"VOL1"
    assert label[4:10] == b"LTO001"
    assert label[10:24] == b" " * 14
    assert label[24:37] == b"SDV".ljust(13)
    assert label[37:51] == b"SDV".ljust(14)
    assert label[51:79] == b" " * 28
    assert label[79:] == b"4"


def test_a_label_is_read_back() -> None:
    found = decode_vol1(encode_vol1("A1"))
    assert (found.identifier, found.version, found.is_ours) == ("A1", "4", True)


def test_the_label_of_another_program_is_not_ours() -> None:
    ltfs = b"VOL1ABC123L" + b" " * 13 + b"LTFS".ljust(13) + b" " * 42 + b"4"
    assert len(ltfs) == 80
    assert not decode_vol1(ltfs).is_ours


@pytest.mark.parametrize(
    "data", [b"", b"VOL1", b"HDR1" + b" " * 76, b"VOL1" + b"\xff" * 76, b"VOL1" + b" " * 75]
)
def test_anything_else_is_no_label(data: bytes) -> None:
    with pytest.raises(VolumeError):
        decode_vol1(data)


@pytest.mark.parametrize("tag", ["", "A" * 33, "Ä1", "A\n"])
def test_a_barcode_that_no_label_can_hold_is_refused(tag: str) -> None:
    with pytest.raises(VolumeError):
        encode_vol1(tag)
