"""The medium changer's rules: what goes where, what is refused and in which words, and that nothing is ever lost."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.errors import BackupError, BusyError, NotFoundError, RefusedError
from storage_node.core.changer import (
    DESTINATION_FULL,
    IO_SLOTS_MAX,
    NO_SUCH_ELEMENT,
    PICKER,
    PICKER_FULL,
    REMOVAL_PREVENTED,
    SLOTS_MAX,
    SOURCE_EMPTY,
    TWICE,
    ChangerModel,
    ElementKind,
    Geometry,
    Placement,
    free_element,
    home_of,
    kind_of,
    place,
    places,
)

GEOMETRY = Geometry(slots=4, io_slots=2, drives=2)


@pytest.fixture
def changer() -> ChangerModel:
    made = ChangerModel(GEOMETRY)
    made.initialize(Placement(elements={"slot-1": "A", "slot-2": "B", "io-1": "C"}))
    return made


def test_elements_are_listed_with_what_is_in_them(changer: ChangerModel) -> None:
    names = [status.element for status in changer.elements()]
    assert names == [
        *("slot-1", "slot-2", "slot-3", "slot-4", "io-1", "io-2", "drive-0", "drive-1", "picker")
    ]
    assert places(changer.elements()) == {"A": "slot-1", "B": "slot-2", "C": "io-1"}
    assert changer.counts() == {
        ElementKind.SLOT: (2, 4),
        ElementKind.IO: (1, 2),
        ElementKind.DRIVE: (0, 2),
        ElementKind.PICKER: (0, 1),
    }


def test_a_loaded_cartridge_goes_back_to_its_home(changer: ChangerModel) -> None:
    assert changer.move("slot-1", "drive-1") == "A"
    assert home_of(changer.elements(), "drive-1") == "slot-1"
    # Nobody else gets it meanwhile.
    assert free_element(changer.elements(), ElementKind.SLOT) == "slot-3"
    with pytest.raises(RefusedError, match="kept for A") as raised:
        changer.move("slot-2", "slot-1")
    assert raised.value.sense == DESTINATION_FULL
    changer.move("drive-1", "slot-1")
    assert places(changer.elements())["A"] == "slot-1"
    assert free_element(changer.elements(), ElementKind.SLOT) == "slot-3"


def test_a_cartridge_loaded_from_the_door_goes_to_a_free_slot(changer: ChangerModel) -> None:
    changer.move("io-1", "drive-0")
    assert home_of(changer.elements(), "drive-0") == "slot-3"


def test_a_cartridge_moved_from_drive_to_drive_keeps_its_home(changer: ChangerModel) -> None:
    changer.move("slot-2", "drive-0")
    changer.move("drive-0", "drive-1")
    assert home_of(changer.elements(), "drive-1") == "slot-2"
    changer.move("drive-1", "io-2")
    changer.check()
    changer.move("slot-1", "slot-2")  # nobody's home any more


@pytest.mark.parametrize(
    ("source", "destination", "error", "sense"),
    [
        ("slot-3", "drive-0", NotFoundError, SOURCE_EMPTY),
        ("slot-1", "slot-2", RefusedError, DESTINATION_FULL),
        ("slot-1", "slot-1", RefusedError, DESTINATION_FULL),
        ("slot-1", "slot-5", NotFoundError, NO_SUCH_ELEMENT),
        ("slot-0", "slot-3", NotFoundError, NO_SUCH_ELEMENT),
        ("drive-2", "slot-3", NotFoundError, NO_SUCH_ELEMENT),
        ("slot-1", "picker", NotFoundError, NO_SUCH_ELEMENT),
        ("../x", "slot-3", NotFoundError, NO_SUCH_ELEMENT),
    ],
)
def test_moves_that_cannot_be_are_refused_in_the_words_of_smc(
    changer: ChangerModel,
    source: str,
    destination: str,
    error: type[BackupError],
    sense: tuple[int, int, int],
) -> None:
    before = changer.elements()
    with pytest.raises(error) as raised:
        changer.move(source, destination)
    assert raised.value.sense == sense
    assert changer.elements() == before


def test_a_drive_that_holds_on_to_its_cartridge_gives_it_to_nobody(changer: ChangerModel) -> None:
    changer.move("slot-1", "drive-0")
    changer.prevent("drive-0", is_prevented=True)
    with pytest.raises(BusyError) as raised:
        changer.move("drive-0", "slot-1")
    assert raised.value.sense == REMOVAL_PREVENTED
    assert [s.element for s in changer.elements() if s.is_removal_prevented] == ["drive-0"]
    changer.prevent("drive-0", is_prevented=False)
    changer.move("drive-0", "slot-1")
    for name in ("slot-1", "drive-7"):
        with pytest.raises(NotFoundError):
            changer.prevent(name, is_prevented=True)


def test_the_picker_does_one_thing_at_a_time(changer: ChangerModel) -> None:
    changer.begin("slot-1", "io-2")
    assert places(changer.elements())["A"] == PICKER
    with pytest.raises(BusyError) as raised:
        changer.begin("slot-2", "slot-3")
    assert raised.value.sense == PICKER_FULL
    changer.undo()
    assert places(changer.elements())["A"] == "slot-1"
    with pytest.raises(AssertionError):
        changer.end()


def test_a_barcode_that_is_there_twice_is_moved_by_nobody(changer: ChangerModel) -> None:
    changer.initialize(Placement(elements={"slot-1": "A", "io-1": "A", "slot-2": "B"}))
    exceptions = {s.element: s.exception for s in changer.elements() if s.exception}
    assert exceptions == {"slot-1": TWICE, "io-1": TWICE}
    for source in ("slot-1", "io-1"):
        with pytest.raises(RefusedError, match="twice"):
            changer.move(source, "slot-4")
    changer.move("slot-2", "slot-3")


def test_more_cartridges_than_elements_are_named(changer: ChangerModel) -> None:
    found = place(library="ABCDEF", io="XYZ", remembered={}, geometry=GEOMETRY)
    assert found.unplaced == ("E", "F", "Z")
    changer.initialize(found)
    left = [s for s in changer.elements() if not s.element]
    assert [(s.tag, s.exception) for s in left] == [
        (tag, "there is no free element for it") for tag in "EFZ"
    ]
    for kind in (ElementKind.SLOT, ElementKind.IO):
        with pytest.raises(RefusedError) as raised:
            free_element(changer.elements(), kind)
        assert raised.value.sense == DESTINATION_FULL


def test_who_had_a_slot_keeps_it() -> None:
    remembered = {"B": "slot-1", "D": "slot-4", "C": "io-2", "A": "io-1", "E": "slot-2"}
    found = place(library="ABD", io="CE", remembered=remembered, geometry=GEOMETRY)
    # A came in through the door, E went out: what is remembered of them is of the wrong kind.
    assert found.elements == {
        "slot-1": "B",
        "slot-4": "D",
        "slot-2": "A",
        "io-2": "C",
        "io-1": "E",
    }
    kept = place(library="A", io="", remembered={}, geometry=GEOMETRY, kept={"slot-1"})
    assert kept.elements == {"slot-2": "A"}


def test_homes_survive_looking_anew(changer: ChangerModel) -> None:
    changer.move("slot-1", "drive-0")
    changer.prevent("drive-0", is_prevented=True)
    changer.initialize(
        Placement(elements={"drive-0": "A", "slot-2": "B"}), {"A": "slot-1", "B": "slot-3"}
    )
    assert home_of(changer.elements(), "drive-0") == "slot-1"
    assert [s.element for s in changer.elements() if s.is_removal_prevented] == ["drive-0"]
    changer.check()
    with pytest.raises(NotFoundError):
        changer.initialize(Placement(elements={"slot-9": "A"}))


@pytest.mark.parametrize("name", ["", "slot", "slot-", "slot-x", "picker-1", "io-99999", "Slot-1"])
def test_names_that_are_no_elements(name: str) -> None:
    with pytest.raises(NotFoundError):
        kind_of(name)


@pytest.mark.parametrize(("slots", "io_slots"), [(0, 1), (SLOTS_MAX + 1, 1), (1, IO_SLOTS_MAX + 1)])
def test_a_library_has_limits(slots: int, io_slots: int) -> None:
    with pytest.raises(RefusedError):
        Geometry(slots=slots, io_slots=io_slots, drives=1)


NAMES = [name for kind in ElementKind for name in GEOMETRY.names(kind)]
STEP = st.one_of(
    st.tuples(st.sampled_from(["move", "begin"]), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    st.tuples(st.sampled_from(["end", "undo"]), st.just(""), st.just("")),
    st.tuples(
        st.sampled_from(["prevent", "allow"]), st.sampled_from(["drive-0", "drive-1"]), st.just("")
    ),
    st.tuples(st.just("unload"), st.sampled_from(["drive-0", "drive-1"]), st.just("")),
)


@settings(max_examples=300, deadline=None)
@given(tags=st.integers(0, 6), steps=st.lists(STEP, max_size=60))
def test_no_cartridge_is_ever_lost_or_in_two_places(
    tags: int, steps: list[tuple[str, str, str]]
) -> None:
    changer = ChangerModel(GEOMETRY)
    names = [f"T{number}" for number in range(tags)]
    changer.initialize(place(library=names[:4], io=names[4:], remembered={}, geometry=GEOMETRY))
    is_moving = False
    for what, first, second in steps:
        try:
            if what == "move":
                changer.move(first, second)
            elif what == "begin":
                changer.begin(first, second)
                is_moving = True
            elif what in ("end", "undo") and is_moving:
                changer.end() if what == "end" else changer.undo()
                is_moving = False
            elif what in ("prevent", "allow"):
                changer.prevent(first, is_prevented=what == "prevent")
            elif what == "unload" and not is_moving:
                unload(changer, first)
        except BackupError:
            pass  # what is refused changes nothing: the checks below say so
        changer.check()
        there = Counter(status.tag for status in changer.elements() if status.tag)
        assert there == Counter(names)


def unload(changer: ChangerModel, drive: str) -> None:
    """Unloading what came from a slot always works."""
    [status] = [s for s in changer.elements() if s.element == drive]
    changer.prevent(drive, is_prevented=False)
    if status.tag and status.home:
        before = status.home
        try:
            changer.move(drive, home_of(changer.elements(), drive))
        except BackupError as error:
            raise AssertionError(f"{status.tag} cannot go home to {before}") from error
