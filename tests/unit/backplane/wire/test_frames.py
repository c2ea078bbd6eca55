"""Headers, entries and MACs of the data plane: exact bytes, limits, total decoding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import RemoteProtocolError
from backplane.wire import frames
from backplane.wire.frames import (
    DATA_BYTES_MAX,
    ENTRIES_MAX,
    SENSE_BYTES_MAX,
    Entry,
    EntryKind,
    Header,
    Opcode,
    Protection,
    Status,
)

KEY = bytes(range(32))

opcodes = st.sampled_from(list(Opcode))
words = st.integers(0, 2**32 - 1)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    opcode, is_reply = draw(opcodes), draw(st.booleans())
    most = DATA_BYTES_MAX if frames.carries_data(opcode, is_reply=is_reply) else 2**32 - 1
    return Header(
        opcode=opcode,
        is_reply=is_reply,
        sequence=draw(words),
        status=draw(st.integers(0, 255)),
        protection=draw(st.sampled_from(list(Protection))),
        address=draw(st.integers(0, 2**64 - 1)),
        length=draw(st.integers(0, most)),
        crc32c=draw(words),
        extra=draw(st.integers(0, SENSE_BYTES_MAX if is_reply else 8)),
        boot=draw(st.integers(0, 65535)),
    )


def extra_of(header: Header) -> bytes:
    return bytes(header.extra_bytes)


def test_the_bytes_of_a_header_are_those_of_the_table() -> None:
    header = Header(
        opcode=Opcode.WRITE,
        is_reply=False,
        sequence=0x01020304,
        status=0x05,
        protection=Protection.CRC32C,
        address=0x1112131415161718,
        length=0x00212223,
        crc32c=0x31323334,
        extra=1,
        boot=0x4142,
    )
    data = frames.encode_header(header, key=KEY, extra=bytes(16))
    assert data[:28].hex(" ") == (
        "01 11 05 01 01 02 03 04 11 12 13 14 15 16 17 18 00 21 22 23 31 32 33 34 00 01 41 42"
    )
    assert len(data) == 32


@given(headers())
def test_a_header_survives_the_wire(header: Header) -> None:
    extra = extra_of(header)
    data = frames.encode_header(header, key=KEY, extra=extra)
    assert frames.decode_header(data) == header
    frames.check_mac(data, extra, key=KEY)


@given(headers(), st.integers(0, 32 * 8 - 1))
def test_any_flipped_bit_is_noticed(header: Header, bit: int) -> None:
    data = bytearray(frames.encode_header(header, key=KEY, extra=extra_of(header)))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteProtocolError, match="MAC"):
        frames.check_mac(bytes(data), extra_of(header), key=KEY)


def test_the_mac_covers_the_extra_bytes_and_needs_the_key() -> None:
    header = Header(opcode=Opcode.READ, is_reply=False, sequence=1, extra=1)
    data = frames.encode_header(header, key=KEY, extra=bytes(16))
    for extra, key in ((b"\1" + bytes(15), KEY), (bytes(16), bytes(32)), (bytes(16), b"")):
        with pytest.raises(RemoteProtocolError, match="MAC"):
            frames.check_mac(data, extra, key=key)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_header_or_a_protocol_error(data: bytes) -> None:
    try:
        header = frames.decode_header(data)
    except RemoteProtocolError:
        return
    assert header.data_bytes <= DATA_BYTES_MAX
    assert header.extra_bytes <= max(ENTRIES_MAX * 16, SENSE_BYTES_MAX)


@pytest.mark.parametrize(("at", "value"), [(0, 2), (1, 0x7F), (1, 0), (3, 2), (24, 0x20), (16, 2)])
def test_versions_codes_and_limits_are_checked(at: int, value: int) -> None:
    header = Header(opcode=Opcode.WRITE, is_reply=False, sequence=1)
    data = bytearray(frames.encode_header(header, key=KEY))
    data[at] = value
    with pytest.raises(RemoteProtocolError):
        frames.decode_header(bytes(data))


def test_only_some_frames_are_followed_by_data() -> None:
    """LENGTH of a READ says how much is wanted; only its reply brings it."""
    followed = {
        (opcode, is_reply)
        for opcode in Opcode
        for is_reply in (False, True)
        if Header(opcode=opcode, is_reply=is_reply, sequence=1, length=7).data_bytes
    }
    assert followed == {
        (Opcode.OPEN, False),
        (Opcode.WRITE, False),
        (Opcode.WRITE_RECORD, False),
        (Opcode.CHALLENGE, True),
        (Opcode.OPEN, True),
        (Opcode.READ, True),
        (Opcode.READ_RECORD, True),
        (Opcode.READ_POSITION, True),
    }


@given(
    st.lists(
        st.builds(
            Entry,
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**32 - 1),
            st.sampled_from(list(EntryKind)),
        ),
        max_size=20,
    )
)
def test_entries_survive_the_wire(entries: list[Entry]) -> None:
    data = frames.encode_entries(entries)
    assert len(data) == 16 * len(entries)
    assert frames.decode_entries(data) == tuple(entries)


@given(st.binary(max_size=70))
def test_any_bytes_are_entries_or_a_protocol_error(data: bytes) -> None:
    try:
        entries = frames.decode_entries(data)
    except RemoteProtocolError:
        assert len(data) % 16 or any(int.from_bytes(data[n + 12 : n + 16], "big") > 1
                                     for n in range(0, len(data), 16))  # fmt: skip
        return
    assert frames.encode_entries(entries) == data


def test_a_header_shows_the_last_sixteen_bits_of_the_boot_id() -> None:
    assert frames.boot_bits(bytes(14) + b"\x12\x34") == 0x1234


def test_the_status_bytes_are_those_of_sam() -> None:
    assert [int(status) for status in Status] == [0x00, 0x02, 0x08, 0x18, 0x40]
