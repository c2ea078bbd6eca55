"""Claims: who owns what twice, and who owns what is free, compared with asking every byte."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.file_map.model import ByteRun, ExtentFlag, FileExtent, FileRow, Identity
from storage_node.mapping import claims as module
from storage_node.mapping.claims import (
    CLAIM_BYTES,
    Places,
    TooManyError,
    claims,
    contested,
    read_claims,
)
from storage_node.mapping.row_codec import decode_batch, encode_rows
from tests.site.mapping_parser import row

SIZE = 40
HOW = {0: 0, 1: int(ExtentFlag.SHARED), 2: int(ExtentFlag.INLINE)}


def file(begin: int, count: int, *, inode: int, flags: int = 0) -> FileRow:
    extent = FileExtent(0, begin, count, flags)
    return row("x", extents=(extent,), identity=Identity(0, inode, 0))


def claims_of(rows: Iterable[FileRow]) -> list[bytes]:
    return claims(decode_batch(encode_rows(list(rows))))


def found(
    rows: Iterable[FileRow], runs: list[ByteRun], *, block: int = 3
) -> tuple[list[ByteRun], list[ByteRun]]:
    records = sorted(claims_of(rows))
    blocks = [records[at : at + block] for at in range(0, len(records), block)]
    result = contested(blocks, runs)
    return list(result.claimed_twice), list(result.strays)


def all_bytes(runs: Iterable[ByteRun]) -> set[int]:
    return {byte for begin, end in runs for byte in range(begin, end)}


FILES = st.lists(
    st.tuples(
        st.integers(0, SIZE), st.integers(1, 8), st.integers(1, 4), st.sampled_from(list(HOW))
    ),
    max_size=12,
)


@given(FILES, st.sets(st.integers(0, SIZE + 8)), st.integers(1, 5))
def test_the_pass_finds_what_asking_every_byte_finds(
    files: list[tuple[int, int, int, int]], free: set[int], block: int
) -> None:
    rows = [file(begin, count, inode=inode, flags=HOW[how]) for begin, count, inode, how in files]
    runs = [(byte, byte + 1) for byte in range(SIZE + 8) if byte not in free]
    twice, strays = found(rows, runs, block=block)
    for begin, count, inode, how in files:
        own = set(range(begin, begin + count))
        is_stray = bool(own & free)
        assert not is_stray or own & all_bytes(strays)
        is_shared_wrongly = any(
            other_inode != inode
            and not (how == other_how == 1)
            and own & set(range(other, other + other_count))
            for other, other_count, other_inode, other_how in files
            if how != 2 and other_how != 2
        )
        assert not is_shared_wrongly or own & all_bytes(twice)
    # And nobody is accused who shares a byte with nobody.
    for byte in all_bytes(twice):
        owners = {
            inode
            for begin, count, inode, how in files
            if begin <= byte < begin + count and how != 2
        }
        assert len(owners) > 1
    for begin, end in strays:
        assert any(b <= begin < b + count for b, count, *_ in files)
        assert set(range(begin, end)) & free


def test_neighbours_are_no_overlap() -> None:
    rows = [file(0, 4, inode=1), file(4, 4, inode=2), file(8, 4, inode=3)]
    assert found(rows, [(0, 5), (5, 12)]) == ([], [])


def test_two_files_with_the_same_bytes_are_found_wherever_the_blocks_end() -> None:
    rows = [file(0, 8, inode=1), file(2, 1, inode=1), file(5, 9, inode=2)]
    for block in (1, 2, 3):
        assert found(rows, [(0, 20)], block=block) == ([(5, 8)], [])
    far = [file(0, 10, inode=1), file(2, 1, inode=1), file(5, 1, inode=2), file(12, 2, inode=3)]
    for block in (1, 2, 3, 4):
        assert found(far, [(0, 20)], block=block) == ([(5, 6)], [])


def test_the_names_of_one_file_share_its_bytes() -> None:
    assert found([file(0, 8, inode=1), file(0, 8, inode=1)], [(0, 8)]) == ([], [])


def test_sharing_takes_two() -> None:
    shared = int(ExtentFlag.SHARED)
    both = [file(0, 8, inode=1, flags=shared), file(4, 8, inode=2, flags=shared)]
    assert found(both, [(0, 20)]) == ([], [])
    assert found([*both, file(6, 1, inode=3)], [(0, 20)]) == ([(6, 7)], [])
    # The one who owns is found behind one who shares and reaches farther.
    rows = [file(0, 5, inode=1), file(1, 9, inode=2, flags=shared), file(3, 1, inode=2)]
    assert found(rows, [(0, 20)]) == ([(1, 5)], [])


def test_contents_inside_metadata_only_have_to_be_allocated() -> None:
    inline = [file(0, 8, inode=1, flags=2), file(4, 8, inode=2, flags=2), file(6, 2, inode=3)]
    assert found(inline, [(0, 10)]) == ([], [(4, 12)])


def test_a_claim_over_a_gap_is_a_stray() -> None:
    assert found([file(2, 6, inode=1)], [(0, 4), (5, 9)]) == ([], [(2, 8)])
    assert found([file(2, 6, inode=1)], []) == ([], [(2, 8)])
    assert found([file(2, 6, inode=1)], [(2, 8)]) == ([], [])


def test_a_compressed_extent_claims_what_is_stored() -> None:
    extent = FileExtent(0, 8, 100, int(ExtentFlag.COMPRESSED), 4, 200, 0, "zlib")
    assert found([row("x", extents=(extent,))], [(8, 12)]) == ([], [])


def test_unwritten_space_without_a_place_claims_nothing() -> None:
    extent = FileExtent(0, -1, 100, int(ExtentFlag.UNWRITTEN))
    assert claims_of([row("x", extents=(extent,))]) == []


def test_a_claim_says_whose_it_is_however_many_extents_the_files_have() -> None:
    compressed = FileExtent(8, 4096, 100, int(ExtentFlag.COMPRESSED), 512, 200, 0, "zlib")
    nowhere = FileExtent(0, -1, 8, int(ExtentFlag.UNWRITTEN))
    rows = [
        row("a", extents=(nowhere, compressed), identity=Identity(5, 1, 0)),
        row("b"),
        row(
            "c", extents=(FileExtent(0, 77, 3, int(ExtentFlag.INLINE)),), identity=Identity(6, 2, 0)
        ),
        row("d", (512, 9), identity=Identity(1 << 63, (1 << 64) - 1, 0)),
    ]
    assert [struct.unpack(">QQQQQ", each) for each in claims_of(rows)] == [
        (4096, 4608, 0, 5, 1),
        (77, 80, 2, 6, 2),
        (512, 521, 0, 1 << 63, (1 << 64) - 1),
    ]


def test_claims_come_from_the_spool_as_they_went() -> None:
    records = claims_of([file(3, 4, inode=5), file(1, 2, inode=6)])
    assert {len(record) for record in records} == {CLAIM_BYTES}
    assert read_claims(b"".join(records)) == records


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5))),
    st.integers(0, 40),
    st.integers(1, 5),
)
def test_places_are_met_where_they_are(runs: list[tuple[int, int]], begin: int, count: int) -> None:
    places = Places()
    for first, length in sorted(runs):
        places.add(first, first + length)
    known = all_bytes((first, first + length) for first, length in runs)
    assert all_bytes(places) == known
    assert places.meet(begin, begin + count) == bool(known & set(range(begin, begin + count)))
    assert bool(places) == bool(runs)


def test_so_many_places_that_nothing_can_be_believed_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CONTESTED_MAX", 3)
    rows = [file(at * 10, 5, inode=at) for at in range(4)]
    with pytest.raises(TooManyError):
        found(rows, [])
