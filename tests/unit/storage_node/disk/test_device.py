"""What devices share: rounding of extents, translation of errors, ranges."""

import errno
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import BackupError
from storage_node.disk.device import (
    NO_SPACE,
    READ_ERROR,
    check_range,
    device_error,
    merged_blocks,
)
from storage_node.disk.memory import MemoryDevice


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), max_size=8),
    st.integers(0, 250),
    st.integers(0, 250),
)
def test_merged_blocks_agree_with_marking_every_block(
    pairs: list[tuple[int, int]], low: int, high: int
) -> None:
    low, high = (8 * (n // 8) for n in sorted((low, high)))
    runs = sorted((start, start + count) for start, count in pairs)
    marked = {
        block
        for start, end in runs
        for block in range(start // 8, (end + 7) // 8)
        if low <= block * 8 < high
    }
    found = list(merged_blocks(iter(runs), block_bytes=8, start_byte=low, end_byte=high))
    assert {block for a, b in found for block in range(a // 8, b // 8)} == marked
    assert all(a < b for a, b in found)
    assert all(before[1] < after[0] for before, after in pairwise(found))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_running_out_of_space_is_not_a_medium_error(code: int) -> None:
    error = device_error(OSError(code, "full"), "write", sense=READ_ERROR, byte_address=7)
    assert error.sense == NO_SPACE
    assert error.byte_address == 7


def test_other_errors_keep_the_sense_of_the_operation() -> None:
    error = device_error(OSError(errno.EIO, "bad"), "read", sense=READ_ERROR)
    assert (error.sense, str(error)) == (READ_ERROR, "cannot read: bad")


def test_a_range_beyond_the_end_is_refused() -> None:
    device = MemoryDevice(1024)
    check_range(device, 1000, 24)
    for start, count in ((1000, 25), (-1, 1), (2000, 0)):
        with pytest.raises(BackupError):
            check_range(device, start, count)
