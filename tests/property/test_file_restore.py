"""Random volumes, files, chains and choices: what is restored is, byte for byte, what a plain model says.

The model is a dictionary of blocks per backup, and files that are lists of places; it knows nothing of maps, runs,
chains or records.  The whole controller runs over a fake network, with lists as they would go to movers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.file_map.content import pieces
from backplane.file_map.model import ExtentFlag, FileExtent, FileRow
from controller.core import planner
from tests.site import maps
from tests.site.disk import BLOCK, Volume
from tests.site.site import Site, check_end, connected, first_record

BLOCKS = 40
NAMES = ("a/one", "a/two", "b/one", "three")
META, FREE = "meta", "free"
HOLE, SPACE = -1, -2
"""What a place of a file may be besides an LBA: nothing, or space that was never written."""

Blocks = dict[int, bytes]


def block(step: int, lba: int) -> bytes:
    return bytes([step + 1, lba]) * (BLOCK // 2)


@dataclass
class Model:
    """Who owns which block, where each file's blocks are, and what was on the volume at each backup."""

    owners: list[str]
    places: dict[str, list[int]]
    cut: dict[str, int]
    """How many bytes of its last block are beyond the end of a file."""
    states: list[Blocks] = field(default_factory=list)

    def size(self, name: str) -> int:
        places = self.places[name]
        return len(places) * BLOCK - (self.cut[name] if places else 0)

    def content(self, name: str, blocks: Blocks) -> bytes:
        """Return the bytes of a file on a volume with these blocks."""
        whole = b"".join(blocks.get(place, bytes(BLOCK)) for place in self.places[name])
        return whole[: self.size(name)]

    def lbas(self, name: str) -> set[int]:
        return {place for place in self.places[name] if place >= 0}

    def row(self, name: str) -> FileRow:
        extents = []
        for number, place in enumerate(self.places[name]):
            if place >= 0:
                extents.append(FileExtent(number * BLOCK, place * BLOCK, BLOCK))
            elif place == SPACE:
                flags = int(ExtentFlag.UNWRITTEN)
                extents.append(FileExtent(number * BLOCK, -1, BLOCK, flags))
        return maps.row(name, extents=tuple(extents))._replace(size=self.size(name))


@st.composite
def models(draw: Any) -> Model:
    owners = draw(st.lists(st.sampled_from((META, FREE, *NAMES)), min_size=BLOCKS, max_size=BLOCKS))
    places = {}
    for name in NAMES:
        own = [lba for lba, owner in enumerate(owners) if owner == name]
        odd = draw(st.lists(st.sampled_from((HOLE, SPACE)), max_size=2))
        places[name] = draw(st.permutations([*own, *odd]))
    cut = {name: draw(st.integers(0, BLOCK - 1)) for name in NAMES}
    return Model(owners, places, cut)


lba_sets = st.sets(st.integers(0, BLOCKS - 1))
steps_of = st.lists(st.tuples(lba_sets, lba_sets), min_size=1, max_size=3)
choices = st.sets(st.sampled_from(NAMES), min_size=1)


def built(site: Site, model: Model, steps: Any, **arguments: Any) -> Volume:
    """Make the volume and back it up after each step: backups 1, 2, ... of the model's `states`."""
    volume = site.make_volume("vol", blocks=BLOCKS)
    volume.track()
    volume.files.odd = [model.row(name) for name in NAMES]
    volume.files.free = {lba for lba, owner in enumerate(model.owners) if owner == FREE}
    for step, (written, trimmed) in enumerate(steps):
        volume.write({lba: block(step, lba) for lba in written})
        volume.trim(*trimmed)
        job = site.submit("backup", volume="vol", **({"level": "auto"} | arguments))
        site.run()
        check_end(site, job)
        model.states.append(dict(volume.data))
    return volume


def restored(site: Site, model: Model, chosen: set[str], **arguments: Any) -> tuple[int, Any]:
    """Restore the newest backup's files; returns the job and what it says of files."""
    asked: dict[str, Any] = {"backup": len(model.states), "paths": sorted(chosen)}
    job = site.submit("restore", **(asked | arguments))
    site.run()
    return job, json.loads(site.job(job).result)["files"]


def rebuilt(model: Model, name: str, blocks: Blocks) -> bytes:
    """Make a file of a volume's blocks, as who asks for a folder does."""
    row, found = model.row(name), b""
    volume = b"".join(blocks.get(lba, bytes(BLOCK)) for lba in range(BLOCKS))
    for piece in pieces(row):
        assert piece.file_byte == len(found)
        first = piece.volume_byte
        found += (
            bytes(piece.byte_count) if first is None else volume[first : first + piece.byte_count]
        )
    return found


@given(models(), steps_of, choices, st.integers(1, 6), st.integers(3, 20))
def test_files_of_a_chain_are_staged_whole_and_nothing_else_is(
    model: Model, steps: Any, chosen: set[str], records: int, segments: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "SEGMENTS_MAX", segments)
        site = connected(records=records)
        built(site, model, steps)
        job, files = restored(site, model, chosen, new="copy", staging=True)
    check_end(site, job)
    data, state = site.disk.by_name("copy").data, model.states[-1]
    for name in chosen:
        assert rebuilt(model, name, data) == model.content(name, state)
    assert set(data) <= set().union(*map(model.lbas, chosen))
    assert files == {
        "restored": len(chosen),
        "bytes": sum(map(model.size, chosen)),
        "failed": 0,
        "listed": [],
    }


@given(models(), steps_of, choices)
def test_a_volume_with_some_files_has_all_that_is_in_use_but_the_others_contents(
    model: Model, steps: Any, chosen: set[str]
) -> None:
    site = connected()
    built(site, model, steps)
    job, _ = restored(site, model, chosen, new="copy")
    check_end(site, job)
    data, state = site.disk.by_name("copy").data, model.states[-1]
    for lba, owner in enumerate(model.owners):
        if owner == META or owner in chosen:
            assert data.get(lba, bytes(BLOCK)) == state.get(lba, bytes(BLOCK)), lba
        else:
            assert lba not in data, f"{lba} of {owner}"


@given(models(), lba_sets, choices, choices)
def test_a_backup_of_chosen_files_gives_back_those_and_names_the_others(
    model: Model, written: set[int], copied: set[str], chosen: set[str]
) -> None:
    site = connected()
    built(site, model, [(written, set())], paths=sorted(copied), level="full")
    site.submit("restore", backup=1, paths=sorted(chosen), new="copy", staging=True)
    site.run()
    row = site.job(2)
    back = copied & chosen
    assert row.exit_code == (5 if not back else 0 if chosen <= copied else 3)
    if back:
        data = site.disk.by_name("copy").data
        for name in back:
            assert rebuilt(model, name, data) == model.content(name, model.states[-1])
        listed = json.loads(row.result)["files"]["listed"]
        assert {each["path"] for each in listed} == chosen - copied


@given(models(), steps_of, choices, lba_sets)
def test_files_that_are_put_back_in_place_are_whole_and_every_other_block_is_as_it_was(
    model: Model, steps: Any, chosen: set[str], written: set[int]
) -> None:
    site = connected(records=2)
    volume = built(site, model, steps)
    volume.write({lba: block(99, lba) for lba in written})
    before = dict(volume.data)
    job, files = restored(site, model, chosen)
    check_end(site, job)
    own = set().union(*map(model.lbas, chosen))
    for name in chosen:
        assert model.content(name, volume.data) == model.content(name, model.states[-1])
    for lba in set(range(BLOCKS)) - own:
        assert volume.data.get(lba) == before.get(lba), lba
    assert files["restored"] == len(chosen)


@given(models(), steps_of, choices, st.sets(st.integers(0, 15), min_size=1), st.booleans())
def test_whatever_is_damaged_a_file_is_whole_or_named(
    model: Model, steps: Any, chosen: set[str], bad: set[int], is_seen_late: bool
) -> None:
    """Damaged on the cartridge, or written to a wrong place by a mover: what is not listed is right."""
    site = connected(records=2)
    built(site, model, steps)
    if is_seen_late:
        site.disk.misdirected = {lba: (lba * 7 + 3) % BLOCKS for lba in bad}
    else:
        site.tapes["LTO001L8"].bad = {first_record(site, 1) + number for number in bad}
    site.submit("restore", backup=len(steps), paths=sorted(chosen), new="copy", staging=True)
    site.run()
    row = site.job(len(steps) + 1)
    if row.state == "failed":
        # A damaged label or header of a later backup is no damage to a file: then there is no restore at all.
        assert not is_seen_late
        return
    files = json.loads(row.result)["files"]
    named = {each["path"] for each in files["listed"]}
    data = site.disk.by_name("copy").data
    for name in chosen - named:
        assert rebuilt(model, name, data) == model.content(name, model.states[-1])
    assert named <= chosen | {"(metadata)"}
    assert row.state == ("partial" if named else "completed")
    assert files["restored"] == len(chosen - named)
