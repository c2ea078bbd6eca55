"""What readers are given: bytes, all that were asked for or an error."""

from __future__ import annotations

import pytest

from storage_node.mapping.reader import READ_BYTES_MAX, BytesSource, DamagedError

SOURCE = BytesSource(bytes(range(100)))


def test_a_source_gives_what_was_asked_for() -> None:
    assert SOURCE.size_bytes == 100
    assert SOURCE.read(10, 5) == bytes([10, 11, 12, 13, 14])
    assert SOURCE.read(100, 0) == b""


@pytest.mark.parametrize(("offset", "count"), [(-1, 5), (96, 5), (0, 101), (200, 0), (50, -1)])
def test_a_short_read_is_an_error(offset: int, count: int) -> None:
    with pytest.raises(DamagedError):
        SOURCE.read(offset, count)


def test_who_wants_more_asks_again() -> None:
    large = BytesSource(bytes(READ_BYTES_MAX + 1))
    assert len(large.read(1, READ_BYTES_MAX)) == READ_BYTES_MAX
    with pytest.raises(DamagedError):
        large.read(0, READ_BYTES_MAX + 1)
