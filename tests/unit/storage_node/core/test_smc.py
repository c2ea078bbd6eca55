"""Commands and answers of a medium changer, byte for byte."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import RemoteProtocolError
from storage_node.core.smc import (
    ElementType,
    Span,
    decode_assignment,
    decode_status,
    mode_sense_assignment,
    move_medium,
    read_element_status,
)
from tests.site.smc_device import assignment_reply, descriptor, page, status_reply


def test_commands_have_their_fields_where_the_standard_wants_them() -> None:
    assert mode_sense_assignment().hex() == "1a081d00ff00"
    wanted = read_element_status(first=0x0102, count=0xFFFF, allocation=0x030405)
    assert wanted.hex() == "b8100102ffff000304050000"
    moved = move_medium(transport=1, source=0x1003, destination=0x0100)
    assert moved.hex() == "a50000011003010000000000"
    assert len(moved) == len(wanted) == 12


def test_an_assignment_is_taken_apart() -> None:
    found = decode_assignment(assignment_reply((1, 1), (0x1000, 24), (0x10, 4), (0x100, 2)))
    assert (found.transport, found.storage) == (Span(1, 1), Span(0x1000, 24))
    assert (found.import_export, found.data_transfer) == (Span(0x10, 4), Span(0x100, 2))
    none = decode_assignment(assignment_reply((1, 1), (0x1000, 24), (0, 0), (0x100, 2)))
    assert none.import_export.count == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x00\xff" + bytes(20),
        assignment_reply((1, 1), (2, 1), (3, 1), (4, 1))[:-4],
        bytes([23, 0, 0, 0, 0x1F, 0x12]) + bytes(18),
        assignment_reply((1, 1), (0xFFFF, 2), (3, 1), (4, 1)),
        assignment_reply((1, 1), (10, 5), (14, 2), (4, 1)),
    ],
)
def test_an_assignment_that_makes_no_sense_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_assignment(data)


def test_a_status_is_taken_apart() -> None:
    reply = status_reply(
        page(ElementType.STORAGE, [descriptor(0x1000, "LTO001L8"), descriptor(0x1001)]),
        page(ElementType.DATA_TRANSFER, [descriptor(0x100, "LTO002L8", source=0x1001)]),
        page(ElementType.TRANSPORT, [descriptor(1, has_tag=False)], has_tags=False),
    )
    one, two, drive, picker = decode_status(reply)
    assert (one.type, one.address, one.is_full, one.tag) == (
        ElementType.STORAGE,
        0x1000,
        True,
        "LTO001L8",
    )
    assert (two.is_full, two.tag, two.source, two.exception) == (False, "", None, None)
    assert (drive.tag, drive.source) == ("LTO002L8", 0x1001)
    assert (picker.type, picker.tag) == (ElementType.TRANSPORT, "")


def test_an_exception_and_an_unreadable_barcode_are_kept_apart_from_tags() -> None:
    reply = status_reply(
        page(
            ElementType.STORAGE,
            [descriptor(1, "\x1b[2J", exception=(0x83, 0x01)), descriptor(2, "")],
        )
    )
    one, two = decode_status(reply)
    assert (one.is_full, one.tag, one.exception) == (True, "", (0x83, 0x01))
    assert (two.is_full, two.tag) == (True, "")


GOOD = status_reply(
    page(ElementType.STORAGE, [descriptor(0x1000, "LTO001L8"), descriptor(0x1001)]),
    page(ElementType.IMPORT_EXPORT, [descriptor(0x10)]),
)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:7],
        lambda raw: raw[:-1],
        lambda raw: raw[:2] + b"\x00\x09" + raw[4:],
        lambda raw: raw[:8] + b"\x07" + raw[9:],
        lambda raw: raw[:10] + b"\x00\x03" + raw[12:],
        lambda raw: raw[:13] + b"\xff\xff\xff" + raw[16:],
        lambda raw: raw[:16] + struct.pack(">H", 0x10) + raw[18:],
    ],
)
def test_a_status_that_contradicts_itself_is_refused(change: Any) -> None:
    assert len(decode_status(GOOD)) == 3
    with pytest.raises(RemoteProtocolError):
        decode_status(change(GOOD))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_status_or_refused(raw: bytes) -> None:
    try:
        found = decode_status(raw)
    except RemoteProtocolError:
        return
    assert all(each.tag == "" or each.tag.isalnum() for each in found)
