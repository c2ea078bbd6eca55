"""The drawing of a volume's states is found by trying every request in every state.

There is no table to draw: a volume's rules are about more than its state.  So the book is asked, with everything else
in favour of the request: no view, no writer, a new epoch, force.  `--rewrite` writes the drawing anew; read the diff.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from backplane.errors import BackupError
from backplane.ids import Epoch, JobId, VolumeId
from backplane.scsi.designator import designator_of
from storage_node.core.floors import Floor
from storage_node.core.volume_state import State, VolumeBook, VolumeRecord

PAGE = Path(__file__).resolve().parents[2] / "docs" / "state-machines" / "volume.md"
BEGIN = "--rewrite -->\n"
END = "<!-- end of drawing -->"
VOLUME = VolumeId("ab" * 16)
EPOCH = Epoch(9)
FLOOR = Floor(epoch=EPOCH, holder=b"")

ACTIONS: dict[str, Callable[[VolumeBook], object]] = {
    "offline": lambda book: book.offline(
        VOLUME, job=JobId(2), epoch=EPOCH, is_forced=True, floor=FLOOR
    ),
    "publish as online": lambda book: book.publish(
        VOLUME, job=JobId(2), epoch=EPOCH, state="online", floor=FLOOR
    ),
    "publish as restore-failed": lambda book: book.publish(
        VOLUME, job=JobId(2), epoch=EPOCH, state="restore-failed", floor=FLOOR
    ),
    "flush failed": lambda book: book.failed(VOLUME),
    "delete": lambda book: book.delete(VOLUME, has_writer=False),
}


def book_with(state: State) -> VolumeBook:
    """Return a book with one volume in a state."""
    record = VolumeRecord(
        volume=VOLUME,
        name="vol",
        designator=designator_of(VOLUME),
        size_bytes=4096,
        block_bytes=512,
        path="",
        state=state,
        job=JobId(2) if state is State.RESTORING else JobId(0),
        epoch=Epoch(1),
        is_empty=False,
        needs_discard=False,
    )
    book = VolumeBook(volumes=[record])
    book.check_invariants()
    return book


def made(how: str) -> str:
    """Return the state of a volume that was just made."""
    book = VolumeBook()
    if how == "attach":
        book.attach(volume=VOLUME, name="vol", path="/x", size_bytes=4096, block_bytes=512)
    else:
        state = how.removeprefix("create ")
        book.create(volume=VOLUME, name="vol", size_bytes=4096, block_bytes=512, state=state)
    return book.volume(VOLUME).state.value


def arrows() -> list[tuple[str, str, str]]:
    """Return (state, state, request) for all that happens, None for refusals and for what changes nothing."""
    found = []
    for state in State:
        for name, action in ACTIONS.items():
            book = book_with(state)
            try:
                action(book)
            except BackupError:
                continue
            book.check_invariants()
            record = book.volumes.get(VOLUME)
            after = record.state.value if record is not None else "[*]"
            if after != state.value:
                found.append((state.value, after, name))
    return found


def drawing() -> str:
    lines = ["```mermaid", "stateDiagram-v2", '    state "restore-failed" as restore_failed']
    ways = ("create online", "create importing", "attach")
    lines += [f"    [*] --> {made(how)}: {how.split()[0]}" for how in ways]
    lines += [f"    {old} --> {new}: {why}" for old, new, why in arrows()]
    text = "\n".join(lines)
    for end in (" ", "\n", ":"):
        text = text.replace(f"restore-failed{end}-->", f"restore_failed{end}-->")
    text = text.replace("--> restore-failed:", "--> restore_failed:")
    return (
        f"{text}\n    class online happy\n    classDef happy fill:#cfc\n"
        "    class restore_failed failed\n    classDef failed fill:#fcc\n```\n"
    )


def test_the_drawing_of_a_volumes_states_is_not_stale(is_rewriting: bool) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(BEGIN)
    drawn, end, after = rest.partition(END)
    assert found
    assert end
    if is_rewriting:
        PAGE.write_text(before + found + drawing() + end + after, encoding="utf-8")
        return
    assert drawn == drawing(), "run this test with --rewrite and read the diff"


def test_every_state_and_every_request_is_explained_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [state.value for state in State if f"| {state.value} |" not in page]
    missing += [name for name in (*ACTIONS, "create", "attach") if f"| {name} |" not in page]
    assert not missing


def test_no_request_makes_a_volume_online_that_was_not_whole() -> None:
    """Only a publish does, and only from a state in which somebody answers for the content."""
    to_online = [(old, why) for old, new, why in arrows() if new == "online"]
    assert sorted(to_online) == [
        ("importing", "publish as online"),
        ("restoring", "publish as online"),
    ]
    failed = replace(book_with(State.RESTORE_FAILED).volume(VOLUME))
    assert failed.state is State.RESTORE_FAILED
