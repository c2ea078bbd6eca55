"""Real drives as a library: with a robot, and loaded by hand."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from backplane.errors import (
    BusyError,
    MediumError,
    NotFoundError,
    RefusedError,
    UsageError,
    VolumeError,
)
from backplane.testing.tape_content import (
    label_objects,
    part_objects,
    volume_header,
    write_objects,
)
from storage_node.core.mtio import GeneralStatus
from storage_node.tape.device_drive import DeviceDrive
from storage_node.tape.device_library import LOAD_WAIT_S, DeviceLibrary
from storage_node.tape.drive_counters import LOADS_PER_CLEANING
from storage_node.tape.library import CartridgeStatus
from storage_node.tape.smc_changer import SmcChanger
from storage_node.tape.tape_device import Identity
from tests.site.rack import Rack

FIRST, SECOND, CLEANER = "SDV001L8", "SDV002L8", "CLN001L1"
OTHER_VOLUME: Final = "ff" * 16
MOMENT: Final = "2026-01-11T10:43:48Z"
TERABYTE: Final = 10**12


class Site:
    """A rack, and one process after another that uses it."""

    def __init__(self, folder: Path, *, has_robot: bool) -> None:
        self.rack = Rack(folder / "rack")
        self.state = folder
        self.has_robot = has_robot
        self.waited: list[float] = []
        self.library: Any = None

    def start(self, **changes: Any) -> DeviceLibrary:
        drives = [
            DeviceDrive(
                Path(f"/dev/nst{number}"), open_device=self.rack.open, identity=Identity("M", "1")
            )
            for number in range(2)
        ]
        options = {"wait": self.waited.append} | changes
        changer = SmcChanger(self.rack.changer()) if self.has_robot else None
        self.library = DeviceLibrary(drives, state_folder=self.state, changer=changer, **options)
        self.scan()
        return self.library  # type: ignore[no-any-return]

    def scan(self) -> None:
        """Look into everything, as the tape role does."""
        self.library.scan()
        for number in range(2):
            self.library.look(drive=number)

    def again(self) -> DeviceLibrary:
        self.library.close()
        return self.start()

    def write(self, objects: Any, *, drive: int = 0) -> int:
        head = self.library.drives[drive]
        head.label()
        return write_objects(head, objects)


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[Site]:
    """Two blank cartridges in slots, and one for cleaning."""
    made = Site(tmp_path, has_robot=True)
    for number, tag in enumerate((FIRST, SECOND, CLEANER), 1):
        made.rack.make(tag)
        made.rack.put(tag, f"slot-{number}")
    made.start()
    yield made
    made.library.close()


@pytest.fixture
def hand(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, has_robot=False)
    made.start()
    yield made
    made.library.close()


def read_all(library: DeviceLibrary) -> None:
    for tag in library.unread():
        library.look_into(tag, drive=0)


def label(site: Site, tag: str, **changes: str) -> None:
    """Label the cartridge in drive-0."""
    site.write(label_objects(volume_header(tag=tag, **changes)))


# --- with a robot --------------------------------------------------------------------------------


def test_what_was_never_read_is_not_shown_before_it_was(robot: Site) -> None:
    library = robot.library
    assert library.tags() == [CLEANER]
    assert library.unread() == [FIRST, SECOND]
    read_all(library)
    assert library.tags() == [CLEANER, FIRST, SECOND]
    facts = library.facts(FIRST)
    assert (facts.status, facts.load_count) == (CartridgeStatus.BLANK, 1)
    assert facts.capacity_bytes == 12 * TERABYTE
    assert robot.rack.places == {"slot-1": FIRST, "slot-2": SECOND, "slot-3": CLEANER}
    assert library.drives[0].cartridge is None
    library = robot.again()
    assert library.unread() == []
    assert library.facts(FIRST) == facts


def test_a_cartridge_goes_from_its_slot_to_a_drive_and_back(robot: Site) -> None:
    library = robot.library
    assert library.load(FIRST, drive=1) == "end of data at object 0"
    assert robot.rack.places["drive-1"] == FIRST
    assert library.places()[FIRST] == "drive-1"
    with pytest.raises(BusyError, match="drive-1 already"):
        library.load(FIRST, drive=0)
    with pytest.raises(BusyError, match=f"{FIRST} is in the drive"):
        library.load(SECOND, drive=1)
    with pytest.raises(BusyError, match="unload it first"):
        library.move(FIRST, "io")
    assert library.unload(drive=1).is_good
    assert robot.rack.places["slot-1"] == FIRST
    assert library.move(FIRST, "io") == "io-1"
    assert library.move(FIRST, "io") == "io-1"
    with pytest.raises(RefusedError, match="may be taken out"):
        library.load(FIRST, drive=0)
    assert library.move(FIRST, "slot-4") == "slot-4"
    with pytest.raises(UsageError):
        library.move(FIRST, "drive-0")
    with pytest.raises(NotFoundError):
        library.load("SDV009L8", drive=0)
    with pytest.raises(RefusedError, match="cleaning"):
        library.load(CLEANER, drive=0)


def test_a_cartridge_in_a_slot_is_as_it_was_seen_last(robot: Site) -> None:
    library = robot.library
    library.load(FIRST, drive=0)
    label(robot, FIRST)
    objects, trailer = part_objects([b"x" * 512] * 3)
    end = robot.write(objects)
    library.unload(drive=0)
    facts = robot.again().facts(FIRST)
    assert (facts.status, facts.volume, facts.end) == (
        CartridgeStatus.WRITABLE,
        trailer.cartridge,
        end,
    )
    assert facts.used_bytes == 3 * 512
    assert facts.volume_change_reference == 1


def test_what_a_restart_finds_in_a_drive_stays_there(robot: Site) -> None:
    robot.library.load(FIRST, drive=0)
    label(robot, FIRST)
    library = robot.again()
    assert library.facts(FIRST).status is CartridgeStatus.WRITABLE
    assert library.places()[FIRST] == "drive-0"
    assert robot.rack.devices["drive-0"].is_locked
    assert library.unload(drive=0).is_good
    assert robot.rack.places["slot-1"] == FIRST


def test_what_lies_in_a_drive_because_a_process_was_stopped_is_threaded_again(robot: Site) -> None:
    robot.library.load(FIRST, drive=0)
    robot.library.drives[0].eject()
    assert robot.rack.ejected == ["drive-0"]
    library = robot.again()
    assert library.drives[0].cartridge is not None
    assert library.unload(drive=0).is_good


def test_a_drive_that_is_not_the_changers_is_found_out(
    robot: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = robot.library
    one, other = library.drives
    monkeypatch.setattr(one, "path", other.path)
    robot.waited.clear()
    with pytest.raises(MediumError, match="nothing came into /dev/nst1") as caught:
        library.load(FIRST, drive=0)
    assert "in the order of the changer" in caught.value.hint
    assert sum(robot.waited) == LOAD_WAIT_S
    # What could not be used goes back.
    assert robot.rack.places["slot-1"] == FIRST


def test_the_label_has_to_say_what_the_barcode_says(robot: Site) -> None:
    library = robot.library
    library.load(FIRST, drive=0)
    label(robot, SECOND)
    library.unload(drive=0)
    library.load(FIRST, drive=0)
    facts = library.facts(FIRST)
    assert facts.status is CartridgeStatus.ERROR
    assert f"the label says barcode {SECOND}" in facts.detail


def test_the_label_has_to_be_the_one_that_was_there(robot: Site) -> None:
    """T5: another cartridge with the same barcode and the same words in its label."""
    library = robot.library
    library.load(FIRST, drive=0)
    label(robot, FIRST)
    library.unload(drive=0)
    library.look_into(FIRST, drive=0)
    volume = library.facts(FIRST).volume
    (robot.rack.cartridges / FIRST).rename(robot.rack.cartridges / "aside")
    robot.rack.make(FIRST)
    library.load(FIRST, drive=0)
    assert library.facts(FIRST).status is CartridgeStatus.BLANK
    label(robot, FIRST, cartridge=OTHER_VOLUME)
    library.unload(drive=0)
    library.load(FIRST, drive=0)
    assert library.facts(FIRST).volume == OTHER_VOLUME
    library.unload(drive=0)
    (robot.rack.cartridges / FIRST).rename(robot.rack.cartridges / "other")
    (robot.rack.cartridges / "aside").rename(robot.rack.cartridges / FIRST)
    library.load(FIRST, drive=0)
    facts = library.facts(FIRST)
    assert facts.status is CartridgeStatus.ERROR
    assert f"the label says {volume}, it was {OTHER_VOLUME}" in facts.detail
    assert facts.volume == OTHER_VOLUME


def test_a_foreign_tape_is_called_by_name(robot: Site) -> None:
    robot.library.load(FIRST, drive=0)
    robot.write([b"AMANDA: TAPESTART DATE X TAPE DAILY-07\n"])
    robot.library.unload(drive=0)
    robot.library.look_into(FIRST, drive=0)
    facts = robot.library.facts(FIRST)
    assert facts.status is CartridgeStatus.FOREIGN
    assert "DAILY-07" in facts.detail


def test_what_cannot_be_done_is_refused_by_name(robot: Site) -> None:
    library = robot.library
    with pytest.raises(RefusedError, match="put in at its door, not made"):
        library.add("SDV009L8", capacity_bytes=1 << 30, created=MOMENT)
    with pytest.raises(RefusedError, match="not cleaned from here"):
        library.clean(CLEANER, drive=0)
    library.load(FIRST, drive=0)
    with pytest.raises(MediumError, match="loaded anew"):
        library.reformat(drive=0)


def test_a_barcode_that_labels_cannot_hold_is_no_cartridge(robot: Site) -> None:
    robot.rack.put("lto-1", "slot-4")
    robot.library.scan()
    assert "lto-1" not in robot.library.places()
    robot.rack.put(FIRST, "io-2")
    robot.library.scan()
    assert "twice" in robot.library.exceptions()[FIRST]
    with pytest.raises(RefusedError, match="twice"):
        robot.library.load(FIRST, drive=0)
    assert FIRST not in robot.library.unread()


def test_a_drive_that_does_not_hold_on_gives_the_cartridge_back(robot: Site) -> None:
    robot.rack.fails_to_lock = True
    with pytest.raises(MediumError, match="lock"):
        robot.library.load(FIRST, drive=0)
    assert robot.rack.places["slot-1"] == FIRST
    assert robot.library.drives[0].cartridge is None


def test_a_full_cartridge_stays_full(robot: Site) -> None:
    robot.rack.make("SDV003L8", capacity_bytes=64 << 10, early_warning_bytes=32 << 10)
    robot.rack.put("SDV003L8", "slot-4")
    library = robot.library
    library.scan()
    library.load("SDV003L8", drive=0)
    label(robot, "SDV003L8")
    robot.write([bytes([n]) * 8192 for n in range(5)])
    library.drives[0].label()
    assert library.facts("SDV003L8").status is CartridgeStatus.FULL
    library.reload(drive=0)
    assert not library.drives[0].is_beyond_warning, "the driver tells who writes, and nobody else"
    assert library.facts("SDV003L8").status is CartridgeStatus.FULL
    library.drives[0].rewind()
    library.drives[0].allow_overwrite(0)
    library.drives[0].erase()
    assert library.facts("SDV003L8").status is CartridgeStatus.BLANK


def test_what_a_drive_counts_is_kept_and_what_it_asks_for_is_told(robot: Site) -> None:
    library = robot.library
    library.load(FIRST, drive=1)
    library.count_errors(1, read_errors=2, write_errors=1)
    counted = robot.again().counters(1)
    assert (counted.read_errors, counted.write_errors, counted.needs_cleaning) == (2, 1, False)
    robot.rack.devices["drive-1"]._status |= GeneralStatus.CLEANING
    assert robot.library.counters(1).loads_since_cleaning == LOADS_PER_CLEANING
    assert not robot.library.counters(0).needs_cleaning


# --- by hand -------------------------------------------------------------------------------------


def test_a_blank_cartridge_has_the_name_that_a_person_gives_it(hand: Site) -> None:
    library = hand.library
    with pytest.raises(RefusedError, match="no drive"):
        library.add(FIRST, capacity_bytes=1 << 30, created=MOMENT)
    for number, tag in enumerate((FIRST, SECOND)):
        hand.rack.make(tag)
        hand.rack.put(tag, f"drive-{number}")
    hand.scan()
    assert library.tags() == []
    with pytest.raises(RefusedError, match="drive-0 and drive-1"):
        library.add(FIRST, capacity_bytes=1 << 30, created=MOMENT)
    hand.rack.take("drive-1")
    for refused, words in ((CLEANER, "volume tag"), ("lto-1", "volume tag")):
        with pytest.raises(RefusedError, match=words):
            library.add(refused, capacity_bytes=1 << 30, created=MOMENT)
    with pytest.raises(RefusedError, match="WORM"):
        library.add(FIRST, capacity_bytes=1 << 30, created=MOMENT, is_worm=True)
    facts = library.add(FIRST, capacity_bytes=1 << 30, created=MOMENT)
    assert (facts.status, facts.capacity_bytes) == (CartridgeStatus.BLANK, 1 << 30)
    assert library.places() == {FIRST: "drive-0"}
    assert hand.rack.devices["drive-0"].is_locked


def test_a_labelled_cartridge_is_called_what_its_label_says(hand: Site) -> None:
    library = hand.library
    hand.rack.make("X1")
    hand.rack.put("X1", "drive-1")
    library.add(FIRST, capacity_bytes=1 << 30, created=MOMENT)
    hand.write(label_objects(volume_header(tag=FIRST)), drive=1)
    assert library.unload(drive=1).is_good
    assert library.tags() == []
    with pytest.raises(NotFoundError) as caught:
        library.load(FIRST, drive=0)
    assert "ctl tape scan" in caught.value.hint
    hand.rack.take("drive-1")
    hand.rack.put("X1", "drive-0")
    hand.scan()
    assert library.places() == {FIRST: "drive-0"}
    assert library.facts(FIRST).status is CartridgeStatus.WRITABLE
    with pytest.raises(BusyError):
        library.load(FIRST, drive=0)
    with pytest.raises(RefusedError, match="no changer"):
        library._changer.move("drive-0", "io-1")


def test_another_cartridge_than_the_one_that_was_asked_for_is_known_as_what_it_is(
    hand: Site,
) -> None:
    """T5, by hand: nobody takes what is in the drive for what was asked for."""
    library = hand.library
    for name, tag, volume in (("X1", FIRST, "11" * 16), ("X2", SECOND, "22" * 16)):
        hand.rack.make(name)
        hand.rack.put(name, "drive-0")
        library.add(tag, capacity_bytes=1 << 30, created=MOMENT)
        label(hand, tag, cartridge=volume)
        library.reload(drive=0)
        library.facts(tag)
        library.unload(drive=0)
        hand.rack.take("drive-0")
    hand.rack.put("X2", "drive-0")
    hand.scan()
    assert library.places() == {SECOND: "drive-0"}
    with pytest.raises(NotFoundError):
        library.load(FIRST, drive=0)
    with pytest.raises(RefusedError, match="on a shelf"):
        library.add(FIRST, capacity_bytes=1 << 30, created=MOMENT)


def test_a_copy_in_another_drive_has_no_name(hand: Site) -> None:
    library = hand.library
    for number, name in enumerate(("X1", "X2")):
        hand.rack.make(name)
        hand.rack.put(name, f"drive-{number}")
        if number == 0:
            library.add(FIRST, capacity_bytes=1 << 30, created=MOMENT)
            label(hand, FIRST)
    library.add(SECOND, capacity_bytes=1 << 30, created=MOMENT)
    hand.write(label_objects(volume_header(tag=FIRST)), drive=1)
    library = hand.again()
    assert library.places() == {FIRST: "drive-0"}


def test_after_a_failure_the_cartridge_is_begun_anew_where_it_is(hand: Site) -> None:
    library = hand.library
    hand.rack.make("X1")
    hand.rack.put("X1", "drive-0")
    library.add(FIRST, capacity_bytes=1 << 30, created=MOMENT)
    label(hand, FIRST)
    hand.rack.devices["drive-0"].fail = errno.EIO
    library.drives[0].rewind()
    hand.rack.devices["drive-0"].fail = errno.EIO
    library.drives[0].write_filemarks(1)
    assert library.facts(FIRST).status is CartridgeStatus.ERROR
    library.reload(drive=0)
    assert library.facts(FIRST).status is CartridgeStatus.WRITABLE
    assert library.places() == {FIRST: "drive-0"}


def test_a_record_that_cannot_be_read_is_told_with_its_path(hand: Site) -> None:
    (hand.state / "media" / f"{FIRST}.json").write_text("{")
    with pytest.raises(VolumeError, match=rf"media/{FIRST}\.json"):
        hand.library.info(FIRST)
    with pytest.raises(NotFoundError, match=SECOND):
        hand.library.info(SECOND)


def test_a_device_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    rack = Rack(tmp_path / "rack")
    drive = DeviceDrive(
        Path("/dev/nst7"), open_device=rack.open, identity=Identity(product="", serial="")
    )
    with pytest.raises(MediumError, match="nst7"):
        DeviceLibrary([drive], state_folder=tmp_path)


def test_a_drive_with_a_damaged_tape_does_not_keep_the_others_from_working(
    hand: Site, caplog: pytest.LogCaptureFixture
) -> None:
    hand.rack.make("X1")
    hand.rack.put("X1", "drive-0")
    real: Callable[[Path], Any] = hand.rack.open

    def broken(path: Path) -> Any:
        device = real(path)
        if hasattr(device, "fail"):
            device.fail = errno.EIO
        return device

    hand.library.drives[0]._open_device = broken
    hand.scan()
    assert "a drive is not used" in caplog.text
    assert hand.rack.devices == {}
