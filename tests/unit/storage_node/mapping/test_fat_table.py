"""Chains of clusters in all four forms of the table, against a plain walk."""

from __future__ import annotations

import random
import struct

import pytest

from backplane.testing.disk_images import Recording
from storage_node.mapping import fat_table
from storage_node.mapping.fat_bits import ClusterSet
from storage_node.mapping.fat_table import FatTable
from storage_node.mapping.reader import BytesSource

BITS = [12, 16, 28, 32]


def encode(values: list[int], bits: int) -> bytes:
    if bits == 12:
        packed = b""
        for low, high in zip(values[::2], [*values[1::2], 0], strict=False):
            packed += (low | high << 12).to_bytes(3, "little")
        return packed
    return struct.pack(f"<{len(values)}{'H' if bits == 16 else 'I'}", *values)


def table_of(chains: list[list[int]], clusters: int, bits: int) -> list[int]:
    end = (1 << bits) - 1
    values = [end - 7, end] + [0] * clusters
    for chain in chains:
        for before, after in zip(chain, [*chain[1:], end], strict=True):
            values[before] = after
    return values


def make(values: list[int], bits: int, *others: list[int]) -> FatTable:
    size = len(encode(values, bits))
    data = b"".join(encode(one, bits) for one in (values, *others))
    places = tuple(at * size for at in range(1 + len(others)))
    return FatTable(BytesSource(data), places, bits=bits, clusters=len(values) - 2)


def runs_of(chain: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for cluster in chain:
        if runs and sum(runs[-1]) == cluster:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((cluster, 1))
    return runs


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seed", range(5))
def test_chains_and_used_clusters_are_what_was_written(
    bits: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bits >= 28:
        monkeypatch.setattr(fat_table, "PAGE_ENTRIES", 64)
        monkeypatch.setattr(fat_table, "PAGES_MAX", 2)
    chance = random.Random(seed)
    clusters = 1001
    free = list(range(2, 2 + clusters))
    if seed:
        for _ in range(chance.randrange(400)):
            a, b = chance.randrange(clusters), chance.randrange(clusters)
            free[a], free[b] = free[b], free[a]
    chains = []
    while len(free) > 120:
        count = chance.randint(1, 100)
        chains.append(free[:count])
        del free[:count]
    table = make(table_of(chains, clusters, bits), bits)
    claimed = ClusterSet(clusters)
    for chain in chains:
        found = table.chain(chain[0], claimed)
        assert found == (runs_of(chain), len(chain), "")
    used = {cluster for chain in chains for cluster in chain}
    assert {c for first, end in table.used() for c in range(first, end)} == used


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (0, "free cluster"),
        (1, "does not exist"),
        (40, "does not exist"),
        (-8, "bad cluster"),
        (-9, "does not exist"),
        (5, "two owners"),
        (9, "two owners"),
    ],
)
def test_a_chain_that_leads_nowhere_is_told(bits: int, entry: int, reason: str) -> None:
    values = table_of([[5, 6, 9, 10]], 38, bits)
    values[10] = entry if entry >= 0 else (1 << bits) + entry - 1
    chain = make(values, bits).chain(5, ClusterSet(38))
    assert reason in chain.defect
    assert chain.runs[0] == (5, 2)


@pytest.mark.parametrize("bits", BITS)
def test_every_end_of_chain_is_one(bits: int) -> None:
    for end in range((1 << bits) - 8, 1 << bits):
        values = table_of([[5, 6]], 10, bits)
        values[6] = end
        assert make(values, bits).chain(5, ClusterSet(10)) == ([(5, 2)], 2, "")


def test_the_upper_bits_of_fat32_do_not_count() -> None:
    values = [value | 0xA0000000 for value in table_of([[5, 6, 9]], 38, 28)]
    data = struct.pack(f"<{len(values)}I", *values)
    table = FatTable(BytesSource(data), (0,), bits=28, clusters=38)
    assert table.chain(5, ClusterSet(38)) == ([(5, 2), (9, 1)], 3, "")


@pytest.mark.parametrize("first", [0, 1, 40, 1 << 40])
def test_a_first_cluster_that_does_not_exist_is_told(first: int) -> None:
    assert make(table_of([], 38, 16), 16).chain(first, ClusterSet(38)).defect


@pytest.mark.parametrize("bits", BITS)
def test_a_chain_through_entries_that_differ_is_not_believed(bits: int) -> None:
    right = table_of([[5, 6, 7], [10, 11]], 38, bits)
    other = list(right)
    other[6] = 0
    table = make(right, bits, other)
    claimed = ClusterSet(38)
    assert "both tables" in table.chain(5, claimed).defect
    assert table.chain(10, claimed).defect == ""
    assert list(make(other, bits, right).used()) == [(5, 8), (10, 12)], "used in either"


def test_the_first_two_entries_may_differ() -> None:
    right = table_of([[2, 3]], 38, 16)
    assert make(right, 16, [0, 0, *right[2:]]).chain(2, ClusterSet(38)).defect == ""


def test_more_differences_than_are_remembered_mean_all_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fat_table, "DIFFERING_MAX", 3)
    right = table_of([[2], [30]], 38, 16)
    other = list(right)
    other[10:20] = [1] * 10
    table, claimed = make(right, 16, other), ClusterSet(38)
    assert table.chain(2, claimed).defect == ""
    assert table.chain(30, claimed).defect


def test_a_chain_is_not_in_more_pieces_than_anybody_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fat_table, "RUNS_MAX", 3)
    chain = make(table_of([[2, 4, 6, 8, 10]], 38, 16), 16).chain(2, ClusterSet(38))
    assert "3 pieces" in chain.defect


def test_only_pages_that_a_chain_needs_are_read() -> None:
    clusters = 1_000_000
    data = bytearray(4 * (clusters + 2))
    struct.pack_into("<II", data, 4 * 900_000, 900_001, 0xFFFFFFFF)
    source = Recording(BytesSource(data))
    table = FatTable(source, (0,), bits=32, clusters=clusters)
    assert table.chain(900_000, ClusterSet(clusters)).runs == [(900_000, 2)]
    assert len(source.ranges) == 1
    assert source.ranges[0][1] - source.ranges[0][0] <= 4 * fat_table.PAGE_ENTRIES
