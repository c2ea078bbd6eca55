"""The records that a node keeps of real cartridges: one file per barcode, and none that is half understood."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import VolumeError
from storage_node.tape.library import CartridgeStatus
from storage_node.tape.medium_record import (
    MediumRecord,
    MediumRecords,
    counted_change,
    counted_load,
    facts_of,
    new_record,
)

TAG = "LTO001L8"


@pytest.fixture
def records(tmp_path: Path) -> MediumRecords:
    return MediumRecords(tmp_path / "media")


def test_a_record_is_there_for_the_next_process(records: MediumRecords) -> None:
    assert records.get(TAG) is None
    record = replace(new_record(TAG), retain_until="2027-01-01T00:00:00Z", is_held=True, end=7)
    records.save(record)
    assert MediumRecords(records.folder).get(TAG) == record
    assert [path.name for path in records.folder.iterdir()] == [f"{TAG}.json"]


def test_what_is_new_is_what_its_barcode_says() -> None:
    assert new_record(TAG).capacity_bytes == 12 * 10**12
    assert new_record("LTO001LY").is_worm
    assert new_record("TAPE").capacity_bytes == 0
    assert new_record(TAG).status == ""


def test_a_barcode_that_no_file_can_be_named_by_is_not_looked_for(records: MediumRecords) -> None:
    (records.folder.parent / "x.json").write_text("{}")
    assert records.get("../x") is None


def test_what_was_never_read_is_no_blank_cartridge() -> None:
    facts = facts_of(new_record(TAG))
    assert facts.status is CartridgeStatus.ERROR
    assert "never read" in facts.detail
    seen = facts_of(replace(new_record(TAG), status="full", detail="", end=9, volume="ab"))
    assert (seen.status, seen.end, seen.volume) == (CartridgeStatus.FULL, 9, "ab")


def test_loads_and_changes_are_counted() -> None:
    record = counted_change(counted_load(new_record(TAG)))
    assert (record.load_count, record.volume_change_reference) == (1, 1)
    wrapped = counted_change(replace(record, volume_change_reference=0xFFFF_FFFF))
    assert wrapped.volume_change_reference == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda raw: raw | {"format_version": 2}, "not format version 1"),
        (lambda raw: raw | {"colour": 1}, r"wrong fields: \['colour'\]"),
        (lambda raw: {k: v for k, v in raw.items() if k != "is_held"}, "is_held"),
        (lambda raw: raw | {"is_held": 1}, "is_held is no bool"),
        (lambda raw: raw | {"tag": "LTO002L8"}, "it is that of 'LTO002L8'"),
        (lambda raw: raw | {"retain_until": "never"}, "retain_until"),
        (lambda raw: [raw], "not format version 1"),
    ],
)
def test_a_record_that_is_not_understood_is_told_with_its_path(
    records: MediumRecords, change: Any, told: str
) -> None:
    """Least of all is it taken for a cartridge that nothing retains."""
    records.save(MediumRecord(tag=TAG))
    path = records.folder / f"{TAG}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(VolumeError, match=told) as caught:
        MediumRecords(records.folder).get(TAG)
    assert str(path) in caught.value.message
    assert "retains" in caught.value.hint


def test_a_folder_that_cannot_be_written_is_told(
    records: MediumRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.folder.rmdir()
    with pytest.raises(VolumeError, match="cannot be written"):
        records.save(MediumRecord(tag=TAG))
    assert records.get(TAG) is None
