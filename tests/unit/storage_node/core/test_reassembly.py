"""Slices against the plain meaning of extents and records, and chains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import VolumeError
from backplane.tape_format import (
    PartHeader,
    PartTrailer,
    VolumeFacts,
    decode_metadata,
    decode_record,
)
from backplane.testing.tape_content import part_objects
from storage_node.core.reassembly import (
    MISSING_MAX,
    Found,
    PartContent,
    chain_of,
    content_of_header,
    content_of_trailer,
    missing_parts,
    slices,
    volume_runs,
    zero_runs,
)

BLOCK, RECORD, BLOCKS = 512, 2048, 64
VOLUME = VolumeFacts(
    id="cd" * 16, name="v", designator="3123456789abcdef", blocks=BLOCKS, block_bytes=BLOCK
)


def trailer(extents: Any, **changes: Any) -> PartTrailer:
    stream = sum(count for _, count in extents) * BLOCK
    records = -(-stream // RECORD)
    _, made = part_objects([b"\0" * 512] * records)
    fields = {
        "volume": VOLUME,
        "record_bytes": RECORD,
        "stream_bytes": stream,
        "extents": tuple(extents),
    }
    return replace(made, **(fields | changes))


@st.composite
def extents(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Extents that do not overlap, in any order."""
    cuts = sorted(draw(st.sets(st.integers(0, BLOCKS), min_size=2, max_size=12)))
    runs = [(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    return draw(st.permutations(runs))


runs = st.sets(st.integers(0, BLOCKS * BLOCK), max_size=8).map(
    lambda cuts: list(zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False))
)


@given(extents=extents(), wanted=st.none() | runs)
def test_slices_say_of_each_wanted_byte_where_it_is(extents: Any, wanted: Any) -> None:
    made = trailer(extents)
    plain = [lba * BLOCK + n for lba, count in extents for n in range(count * BLOCK)]
    expected = {
        byte: at
        for at, byte in enumerate(plain)
        if wanted is None or any(begin <= byte < end for begin, end in wanted)
    }
    found: dict[int, int] = {}
    numbers = []
    for number, taken in slices(content_of_trailer(made), wanted=wanted):
        numbers.append(number)
        assert taken
        for offset, byte, count in taken:
            assert 0 <= offset < offset + count <= RECORD
            for n in range(count):
                assert byte + n not in found
                found[byte + n] = number * RECORD + offset + n
    assert found == expected
    assert numbers == sorted(set(numbers)), "each record is read once, in the order of the tape"


def test_extents_that_contradict_the_trailer_are_refused() -> None:
    with pytest.raises(VolumeError, match="behind the end of the volume"):
        list(volume_runs(content_of_trailer(trailer([(BLOCKS - 1, 2)]))))
    with pytest.raises(VolumeError, match="512 bytes, and 1024 in the records"):
        list(volume_runs(content_of_trailer(trailer([(0, 1)], stream_bytes=1024))))
    with pytest.raises(VolumeError, match="zeros behind the end"):
        list(zero_runs(child(zero_extents=((BLOCKS, 1),))))
    with pytest.raises(VolumeError, match="zeros are out of order"):
        list(zero_runs(child(zero_extents=((4, 2), (1, 1)))))


def child(**changes: Any) -> PartContent:
    facts = {"level": "incremental", "parent_uuid": "a" * 32}
    return content_of_trailer(trailer([(0, 1)], **facts, **changes))


def test_what_was_planned_counts_as_far_as_it_was_written() -> None:
    """Early warning came, and the trailer that says so is lost: only the directory knows how much was written."""
    objects, made = part_objects([b"\0" * 512] * 8)
    assert isinstance(objects[0], bytes)
    header = decode_metadata([decode_record(objects[0])])
    assert isinstance(header, PartHeader)
    header = replace(header, extents=((3, 4), (20, 4), (30, 1)))
    entry = replace(made.directory_entry(), stream_bytes=5 * 512)
    content = content_of_header(header, entry, doubt="the trailer is lost")
    assert list(volume_runs(content)) == [(0, 3 * 512, 4 * 512), (4 * 512, 20 * 512, 512)]
    assert (content.doubt, content.part, content.lanes) == ("the trailer is lost", 1, 1)
    with pytest.raises(VolumeError, match="extents of 4608 bytes, and 5120 in the records"):
        list(volume_runs(replace(content, stream_bytes=10 * 512)))


def test_zeros_are_given_in_bytes_and_only_as_far_as_they_are_wanted() -> None:
    made = child(zero_extents=((1, 1), (4, 2)))
    assert list(zero_runs(made)) == [(512, 1024), (2048, 3072)]
    assert list(zero_runs(made, wanted=[(0, 600), (2500, 2501)])) == [(512, 600), (2500, 2501)]


def part(uuid: str, parent: str = "", *, number: int = 1, is_last: bool = True) -> Found:
    level = "incremental" if parent else "full"
    entry = trailer([(0, 1)], parent_uuid=parent, level=level, backup_uuid=uuid).directory_entry()
    return Found(0, replace(entry, part=number, is_last=is_last))


A, B, C = "a" * 32, "b" * 32, "c" * 32


def test_a_chain_begins_with_the_full_backup() -> None:
    found = {A: [part(A)], B: [part(B, A)], C: [part(C, B)]}
    assert chain_of(C, found) == ([A, B, C], "")
    assert chain_of(A, found) == ([A], "")


def test_a_chain_that_leads_nowhere_is_told() -> None:
    assert chain_of(B, {B: [part(B, A)]}) == ([B], A)
    assert chain_of(C, {C: [part(C, B)], A: [part(A)]}) == ([C], B)
    with pytest.raises(VolumeError, match="stands on itself"):
        chain_of(B, {B: [part(B, C)], C: [part(C, B)]})


def test_a_copy_is_as_good_as_what_it_is_a_copy_of() -> None:
    copy = part(C)
    copy = copy._replace(entry=replace(copy.entry, copy_of_uuid=A))
    assert chain_of(B, {B: [part(B, A)], C: [copy]}) == ([C, B], "")
    assert chain_of(B, {B: [part(B, A)], C: [copy], A: [part(A)]}) == ([A, B], "")


def test_missing_parts_are_counted() -> None:
    assert missing_parts([part(A)]) == []
    assert missing_parts([part(A, is_last=False)]) == [0]
    assert missing_parts([part(A, number=3)]) == [1, 2]
    assert missing_parts([part(A, number=2, is_last=False)]) == [1, 0]


def test_a_part_with_an_absurd_number_does_not_take_all_memory() -> None:
    parts = [part(A, number=2), part(A, number=1 << 62)]
    assert missing_parts(parts) == [1, *range(3, MISSING_MAX + 2)]
