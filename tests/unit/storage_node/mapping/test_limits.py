"""Limits that depend on the volume."""

from __future__ import annotations

import pytest

from backplane.units import GIB, TIB
from storage_node.mapping.limits import (
    BATCH_EXTENTS,
    EXTENTS_PER_ROW_MAX,
    FRAME_BYTES_MAX,
    SPOOL_BYTES_MAX,
    read_bytes_max,
    reads_max,
    spool_bytes_max,
)
from storage_node.mapping.row_codec import encode_rows
from tests.site.mapping_parser import row


@pytest.mark.parametrize("limit", [reads_max, read_bytes_max])
def test_a_larger_volume_may_be_read_more(limit: object) -> None:
    assert callable(limit)
    assert 0 < limit(0) <= limit(GIB) < limit(TIB)


def test_what_is_put_aside_grows_with_the_volume_up_to_a_bound() -> None:
    assert spool_bytes_max(0) >= GIB
    assert spool_bytes_max(GIB) > spool_bytes_max(0)
    assert spool_bytes_max(1000 * TIB) == SPOOL_BYTES_MAX


def test_the_largest_row_fits_into_a_frame() -> None:
    """A row is never divided between frames, so a limit on frames must not be one on files."""
    extents = [(at * 8192, 4096) for at in range(BATCH_EXTENTS)]
    some = row("fragmented", *extents)
    unit = {"flags": 4, "stored_bytes": 4096, "raw_bytes": 8192, "algorithm": "zstd"}
    packed = some._replace(extents=tuple(e._replace(**unit) for e in some.extents))  # type: ignore[arg-type]
    bytes_per_extent = len(encode_rows([packed])) / len(extents)
    assert bytes_per_extent * EXTENTS_PER_ROW_MAX < FRAME_BYTES_MAX
