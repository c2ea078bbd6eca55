"""Which requests are allowed, what errors become, and how runs become descriptors."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from backplane.errors import (
    BackupError,
    BusyError,
    MediumError,
    NotAuthorizedError,
    RefusedError,
    SenseTriple,
)
from storage_node.core.nbd_transmission import (
    BLOCK_STATUS,
    CACHE,
    DISCONNECT,
    ERROR_MESSAGE_BYTES_MAX,
    FLAG_DF,
    FLAG_FAST_ZERO,
    FLAG_FUA,
    FLAG_NO_HOLE,
    FLAG_REQ_ONE,
    FLUSH,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Limits,
    NbdError,
    describe_runs,
    encode_done,
    encode_error,
    encode_statuses,
    error_number,
)
from storage_node.disk.device import NO_SPACE, DeviceError, NotFastError

MIB = 1 << 20
LIMITS = Limits(
    size_bytes=64 * MIB,
    block_bytes=512,
    payload_bytes_max=MIB,
    is_read_only=False,
    is_structured=True,
    has_contexts=True,
)
READ_ONLY = replace(LIMITS, is_read_only=True)
SIMPLE = replace(LIMITS, is_structured=False, has_contexts=False)


@pytest.mark.parametrize(
    ("command", "flags", "address", "count"),
    [
        (READ, FLAG_DF | FLAG_FUA, 0, MIB),
        (READ, 0, 64 * MIB - 512, 512),
        (READ, 0, 64 * MIB, 0),
        (WRITE, FLAG_FUA, 512, 512),
        (FLUSH, FLAG_FUA, 123, 456),
        (DISCONNECT, 0, 123, 456),
        (TRIM, FLAG_FUA, 0, 64 * MIB),
        (WRITE_ZEROES, FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO, 0, 64 * MIB),
        (CACHE, 0, 0, 64 * MIB),
        (BLOCK_STATUS, FLAG_REQ_ONE, 0, 64 * MIB),
    ],
)
def test_what_an_export_offers_is_allowed(
    command: int, flags: int, address: int, count: int
) -> None:
    assert LIMITS.allows(command, flags, address, count)


@pytest.mark.parametrize(
    ("limits", "command", "flags", "address", "count", "error", "words"),
    [
        (LIMITS, 8, 0, 0, 0, NbdError.EINVAL, "not known"),
        (LIMITS, 0xFFFF, 0, 0, 0, NbdError.EINVAL, "not known"),
        (LIMITS, READ, FLAG_NO_HOLE, 0, 512, NbdError.EINVAL, "flags"),
        (LIMITS, WRITE, FLAG_DF, 0, 512, NbdError.EINVAL, "flags"),
        (LIMITS, FLUSH, 1 << 15, 0, 0, NbdError.EINVAL, "flags"),
        (SIMPLE, READ, FLAG_DF, 0, 512, NbdError.EINVAL, "DF"),
        (READ_ONLY, WRITE, 0, 0, 512, NbdError.EPERM, "read-only"),
        (READ_ONLY, TRIM, 0, 0, 512, NbdError.EPERM, "read-only"),
        (READ_ONLY, WRITE_ZEROES, 0, 1 << 40, 512, NbdError.EPERM, "read-only"),
        (LIMITS, READ, 0, 0, MIB + 512, NbdError.EINVAL, "at most"),
        (LIMITS, READ, 0, 0, 0xFFFFFFFF, NbdError.EINVAL, "at most"),
        (LIMITS, WRITE, 0, 0, MIB + 512, NbdError.EINVAL, "at most"),
        (LIMITS, READ, 0, 64 * MIB, 512, NbdError.EINVAL, "ends at"),
        (LIMITS, READ, 0, 0xFFFFFFFFFFFFFE00, 512, NbdError.EINVAL, "ends at"),
        (LIMITS, WRITE, 0, 64 * MIB, 512, NbdError.ENOSPC, "ends at"),
        (LIMITS, WRITE, 0, 0xFFFFFFFFFFFFFE00, 512, NbdError.ENOSPC, "ends at"),
        (LIMITS, TRIM, 0, 512, 64 * MIB, NbdError.EINVAL, "ends at"),
        (LIMITS, WRITE_ZEROES, 0, 512, 64 * MIB, NbdError.ENOSPC, "ends at"),
        (LIMITS, CACHE, 0, 512, 64 * MIB, NbdError.EINVAL, "ends at"),
        (LIMITS, BLOCK_STATUS, 0, 512, 64 * MIB, NbdError.EINVAL, "ends at"),
        (LIMITS, READ, 0, 1, 512, NbdError.EINVAL, "multiple"),
        (LIMITS, WRITE, 0, 0, 511, NbdError.EINVAL, "multiple"),
        (LIMITS, BLOCK_STATUS, 0, 0, 0, NbdError.EINVAL, "no bytes"),
        (SIMPLE, BLOCK_STATUS, 0, 0, 512, NbdError.EINVAL, "context"),
    ],
)
def test_what_it_does_not_offer_is_refused_with_a_reason(
    limits: Limits,
    command: int,
    flags: int,
    address: int,
    count: int,
    error: NbdError,
    words: str,
) -> None:
    assert not limits.allows(command, flags, address, count)
    refusal, message = limits.refusal(command, flags, address, count)
    assert refusal is error
    assert words in message


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (DeviceError("full", sense=NO_SPACE), NbdError.ENOSPC),
        (NotFastError(byte_address=0), NbdError.ENOTSUP),
        (MediumError("scratched"), NbdError.EIO),
        (RefusedError("protected"), NbdError.EPERM),
        (NotAuthorizedError("no"), NbdError.EPERM),
        (BackupError("beyond", sense=SenseTriple(0x05, 0x21, 0x00)), NbdError.EINVAL),
        (BusyError("later"), NbdError.EIO),
        (MemoryError(), NbdError.ENOMEM),
        (ZeroDivisionError(), NbdError.EIO),
    ],
)
def test_errors_become_numbers(error: Exception, number: NbdError) -> None:
    assert error_number(error) is number


def test_a_simple_error_has_a_number_and_no_words() -> None:
    data = encode_error(7, NbdError.ENOSPC, "full", is_structured=False)
    assert data == bytes.fromhex("67446698 0000001c 0000000000000007")


def test_a_structured_error_has_both() -> None:
    data = encode_error(7, NbdError.ENOSPC, "full", is_structured=True)
    assert data == bytes.fromhex(
        "668e33ef 0001 8001 0000000000000007 0000000a 0000001c 0004 66756c6c"
    )


def test_words_are_cut_at_a_whole_character() -> None:
    data = encode_error(7, NbdError.EIO, "x" + "ü" * ERROR_MESSAGE_BYTES_MAX, is_structured=True)
    (length,) = struct.unpack_from(">H", data, 24)
    assert length == ERROR_MESSAGE_BYTES_MAX - 1
    assert data[26:].decode().endswith("ü")


def test_the_chunk_that_carries_nothing() -> None:
    assert encode_done(7) == bytes.fromhex("668e33ef 0001 0000 0000000000000007 00000000")


def test_the_last_context_says_that_it_is_the_last() -> None:
    first = encode_statuses(7, 1, [(512, 0), (1024, 3)], is_last=False)
    assert first == bytes.fromhex(
        "668e33ef 0000 0005 0000000000000007 0000001400000001 00000200 00000000 00000400 00000003"
    )
    assert encode_statuses(7, 2, [(512, 1)], is_last=True)[4:6] == b"\0\1"


def described(
    *runs: tuple[int, int], start: int = 0, end: int = 100, count_max: int = 10
) -> list[tuple[int, int]]:
    return describe_runs(
        iter(runs), start_byte=start, end_byte=end, inside=1, outside=0, count_max=count_max
    )


@pytest.mark.parametrize(
    ("runs", "found"),
    [
        ([], [(100, 0)]),
        ([(0, 100)], [(100, 1)]),
        ([(0, 10)], [(10, 1), (90, 0)]),
        ([(90, 100)], [(90, 0), (10, 1)]),
        ([(10, 20), (30, 40)], [(10, 0), (10, 1), (10, 0), (10, 1), (60, 0)]),
        ([(10, 20), (20, 40)], [(10, 0), (30, 1), (60, 0)]),
        ([(10, 400)], [(10, 0), (90, 1)]),
        ([(200, 400)], [(100, 0)]),
    ],
)
def test_runs_become_descriptors(runs: list[tuple[int, int]], found: list[tuple[int, int]]) -> None:
    assert described(*runs) == found


def test_descriptors_stop_at_their_limit() -> None:
    runs = [(start, start + 1) for start in range(0, 100, 2)]
    assert described(*runs, count_max=3) == [(1, 1), (1, 0), (1, 1)]
    assert described((50, 60), start=10, count_max=1) == [(40, 0)]


def test_no_more_runs_are_asked_for_than_are_needed() -> None:
    """A run may cost a walk over a disk; a client that wants one descriptor must not pay for a million."""
    asked = 0

    def runs() -> Iterator[tuple[int, int]]:
        nonlocal asked
        for start in range(0, 1 << 40, 1024):
            asked += 1
            yield start, start + 512

    descriptors = describe_runs(
        runs(), start_byte=0, end_byte=1 << 31, inside=0, outside=3, count_max=100
    )
    assert len(descriptors) == 100
    assert asked <= 52
