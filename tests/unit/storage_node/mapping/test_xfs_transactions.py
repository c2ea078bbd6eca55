"""Transactions put together from operations, wherever records part them."""

from __future__ import annotations

import struct

import pytest

from backplane.testing import xfs_forge as forge
from backplane.testing.xfs_forge import ForgedVolume, Operation
from storage_node.mapping import xfs_transactions
from storage_node.mapping.reader import BytesSource, DamagedError
from storage_node.mapping.xfs_log import Log, find_range
from storage_node.mapping.xfs_superblock import read_geometry
from storage_node.mapping.xfs_transactions import transactions

HEADER = struct.pack("<4sIII", b"NART", 40, 1, 1)
C = forge.CLIENT


def item(count: int = 1, size: int = 20, kind: int = 0x1236) -> bytes:
    return struct.pack("<HH", kind, count).ljust(size, b"\7")


def found(*records: list[Operation], is_data_wanted: bool = True) -> list[list[list[bytes]]]:
    """Return the regions of the items of each transaction."""
    volume = ForgedVolume()
    for operations in records:
        volume.log.record(operations)
    source = BytesSource(bytes(volume.image()))
    log = Log(source, read_geometry(source.read, source.size_bytes))
    return [
        [one.regions for one in items]
        for _, items in transactions(log, find_range(log), is_data_wanted=is_data_wanted)
    ]


def test_items_are_made_of_as_many_regions_as_they_say() -> None:
    operations = forge.transaction([item(3), b"a", b"b" * 300], [item(1)], [item(2), b"c"])
    assert found(operations) == [[[item(3), b"a", b"b" * 300], [item(1)], [item(2), b"c"]]]
    assert found(operations, is_data_wanted=False) == [
        [[item(3), b"", b""], [item(1)], [item(2), b""]]
    ]


def test_transactions_come_in_the_order_of_their_commits() -> None:
    one, two = (
        forge.transaction([item(size=20)], number=1),
        forge.transaction([item(size=24)], number=2),
    )
    mixed = [one[0], two[0], two[1], one[1], one[2], two[2], two[3]]
    assert found(mixed, [one[3]]) == [[[item(size=24)]], [[item(size=20)]]]


def test_a_transaction_is_as_old_as_its_start() -> None:
    volume = ForgedVolume()
    operations = forge.transaction([item()])
    first = volume.log.record(operations[:2])
    volume.log.record(operations[2:])
    source = BytesSource(bytes(volume.image()))
    log = Log(source, read_geometry(source.read, source.size_bytes))
    ((place, _),) = transactions(log, find_range(log), is_data_wanted=True)
    assert place == first


@pytest.mark.parametrize("is_data_wanted", [True, False])
def test_regions_go_on_in_the_next_record(is_data_wanted: bool) -> None:
    long = item(2, 400)
    first = [(1, C, forge.START, b""), (1, C, forge.CONTINUE, HEADER[:10])]
    second = [
        (1, C, forge.WAS_CONTINUED | forge.END, HEADER[10:]),
        (1, C, forge.CONTINUE, long[:100]),
    ]
    third = [(1, C, forge.WAS_CONTINUED | forge.CONTINUE, long[100:300])]
    fourth = [
        (1, C, forge.WAS_CONTINUED | forge.END, long[300:]),
        (1, C, forge.CONTINUE, b"x" * 50),
    ]
    fifth = [(1, C, forge.WAS_CONTINUED | forge.END, b"y" * 60), (1, C, forge.COMMIT, b"")]
    regions = [long, b"x" * 50 + b"y" * 60 if is_data_wanted else b""]
    assert found(first, second, third, fourth, fifth, is_data_wanted=is_data_wanted) == [[regions]]


def test_what_started_before_the_tail_is_passed_over() -> None:
    operations = forge.transaction([item()], number=5)
    assert found(operations[2:], forge.transaction([item()])) == [[[item()]]]


def test_an_unmount_in_between_ends_a_transaction_without_a_trace() -> None:
    operations = forge.transaction([item()])
    operations[-1] = (1, C, forge.UNMOUNT, b"")
    assert found(operations, forge.transaction([item()], number=2)) == [[[item()]]]


@pytest.mark.parametrize(
    "operations",
    [
        [(1, C, forge.START, b""), (1, C, forge.START, b"")],
        [(1, 0x02, forge.START, b"")],
        [(1, C, forge.START, b""), (1, C, 0, b"NARX".ljust(16))],
        [(1, C, forge.START, b""), (1, C, 0, HEADER + b"x")],
        [(1, C, forge.START, b""), (1, C, 0, HEADER[:9]), (1, C, forge.WAS_CONTINUED, HEADER)],
        [(1, C, forge.START, b""), (1, C, 0x40, b"")],
        forge.transaction([b"\0\0"]),
        forge.transaction([item(0)]),
        forge.transaction([item(258)]),
        forge.transaction([item(2)]),
    ],
)
def test_operations_that_cannot_be_are_damage(operations: list[Operation]) -> None:
    with pytest.raises(DamagedError):
        found(operations)


def test_operations_end_within_their_record() -> None:
    for at, value in ((4, 600), (40, 99)):
        volume = ForgedVolume()
        place = volume.log.record(forge.transaction([item()]), is_sealed=False)
        start = place % 2**32 * 512 + (512 if at == 4 else 0)
        volume.log.ring[start + at : start + at + 4] = value.to_bytes(4, "big")
        source = BytesSource(bytes(volume.image()))
        log = Log(source, read_geometry(source.read, source.size_bytes))
        with pytest.raises(DamagedError):
            list(transactions(log, find_range(log), is_data_wanted=True))


def test_open_transactions_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xfs_transactions, "OPEN_BYTES_MAX", 1000)
    with pytest.raises(DamagedError, match="1000 bytes"):
        found(forge.transaction([item(2), bytes(900)]))
    # What is committed no longer counts, nor does what nobody wants.
    small = [forge.transaction([item(2), bytes(700)], number=number) for number in range(1, 9)]
    assert len(found(*small)) == 8
    assert len(found(forge.transaction([item(2), bytes(900)]), is_data_wanted=False)) == 1
    monkeypatch.setattr(xfs_transactions, "TRANSACTIONS_MAX", 2)
    with pytest.raises(DamagedError, match="one too many"):
        found([(number, C, forge.START, b"") for number in range(3)])
