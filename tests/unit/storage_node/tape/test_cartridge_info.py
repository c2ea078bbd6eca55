"""The small file of facts: what it accepts, and where the warnings stand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import RefusedError, VolumeError
from backplane.units import GIB, MIB
from storage_node.core.tape_position import Marks
from storage_node.tape.cartridge_info import (
    CartridgeInfo,
    counted_change,
    counted_load,
    default_reserve_bytes,
    is_cleaning_tag,
    is_volume_tag,
    load_cartridge_info,
    new_cartridge_info,
)

NEW_IN_3 = (
    *("bytes_written", "bytes_read", "last_bytes_written", "last_bytes_read"),
    *("read_errors", "write_errors"),
)


def info(**options: Any) -> CartridgeInfo:
    facts: dict[str, Any] = {
        "serial": "ab" * 16,
        "tag": "LTO001L8",
        "created": "2026-01-11T10:43:48Z",
        "capacity_bytes": 16 * MIB,
    }
    return new_cartridge_info(**facts | options)


def test_the_facts_come_back(tmp_path: Path) -> None:
    written = counted_change(counted_load(info(is_worm=True)))
    written.save(tmp_path)
    assert load_cartridge_info(tmp_path) == written
    assert (written.load_count, written.volume_change_reference) == (1, 1)


def test_the_reserve_is_a_sixteenth_and_at_most_64_mib() -> None:
    assert default_reserve_bytes(16 * MIB) == MIB
    assert default_reserve_bytes(12 * GIB) == 64 * MIB


def test_the_warnings_stand_before_the_end() -> None:
    assert info().marks() == Marks(14 * MIB, 15 * MIB, 16 * MIB)
    given = info(early_warning_bytes=100, programmable_early_warning_bytes=50)
    assert given.marks() == Marks(16 * MIB - 150, 16 * MIB - 100, 16 * MIB)


def test_a_nearer_end_moves_the_warnings_and_never_below_the_beginning() -> None:
    assert info().marks(end_bytes_max=3 * MIB) == Marks(MIB, 2 * MIB, 3 * MIB)
    assert info().marks(end_bytes_max=10) == Marks(0, 0, 10)
    assert info().marks(end_bytes_max=1 << 50) == info().marks()


@pytest.mark.parametrize("tag", ["A", "LTO001L8", "0" * 32])
def test_capital_letters_and_digits_are_a_barcode(tag: str) -> None:
    assert is_volume_tag(tag)


@pytest.mark.parametrize(
    "options",
    [
        {"serial": "ab"},
        {"serial": "XY" * 16},
        {"tag": "lower"},
        {"early_warning_bytes": -1},
        {"early_warning_bytes": 16 * MIB, "programmable_early_warning_bytes": 1},
    ],
)
def test_impossible_facts_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(VolumeError):
        info(**options)


def test_an_impossible_capacity_is_refused() -> None:
    with pytest.raises(RefusedError):
        info(capacity_bytes=1)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 4},
        {"format_version": 2},
        {"bytes_read": -1},
        {"write_errors": 1 << 64},
        {"format_version": 0},
        {"format_version": 1},
        {"format_version": True},
        {"format_version": "2"},
        {"retain_until": "tomorrow"},
        {"retain_until": "2026-13-01T00:00:00Z"},
        {"is_held": 1},
        {"pool": "p" * 65},
        {"cleanings_left": -1},
        {"coherent_object": -1},
        {"coherent_sequence": 1 << 64},
        {"capacity_bytes": "many"},
        {"capacity_bytes": True},
        {"capacity_bytes": 1},
        {"is_worm": 0},
        {"tag": "../x"},
        {"more": 1},
    ],
)
def test_a_file_with_one_wrong_field_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    info().save(tmp_path)
    path = tmp_path / "cartridge.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(VolumeError):
        load_cartridge_info(tmp_path)


def test_version_1_knew_nothing_of_retention(tmp_path: Path) -> None:
    written = info(is_worm=True)
    written.save(tmp_path)
    path = tmp_path / "cartridge.json"
    document = json.loads(path.read_text())
    new = ("retain_until", "is_held", "pool", "cleanings_left")
    new += ("coherent_reference", "coherent_sequence", "coherent_object", *NEW_IN_3)
    old = {name: value for name, value in document.items() if name not in new}
    path.write_text(json.dumps(old | {"format_version": 1}))
    assert load_cartridge_info(tmp_path) == written
    assert (written.retain_until, written.is_held, written.cleanings_left) == ("", False, 50)


def test_version_2_knew_nothing_of_bytes_and_errors(tmp_path: Path) -> None:
    written = replace(info(), pool="weekly")
    replace(written, read_errors=3).save(tmp_path)
    path = tmp_path / "cartridge.json"
    document = json.loads(path.read_text())
    old = {name: value for name, value in document.items() if name not in NEW_IN_3}
    path.write_text(json.dumps(old | {"format_version": 2}))
    assert load_cartridge_info(tmp_path) == written


def test_retention_and_hold_come_back(tmp_path: Path) -> None:
    written = replace(info(), retain_until="2031-01-11T10:43:48Z", is_held=True, pool="yearly")
    written.save(tmp_path)
    assert load_cartridge_info(tmp_path) == written


@pytest.mark.parametrize(("tag", "is_cleaning"), [("CLN001CU", True), ("LTO001L8", False)])
def test_cleaning_cartridges_are_known_by_their_barcode(tag: str, is_cleaning: bool) -> None:
    assert is_cleaning_tag(tag) == is_cleaning
