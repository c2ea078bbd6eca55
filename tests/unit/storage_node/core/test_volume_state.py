"""Which changes of volumes and views are allowed, and what a doubled or late message does."""

import pytest

from backplane.errors import (
    BusyError,
    NotFoundError,
    NotQuietError,
    RefusedError,
    StaleError,
    UsageError,
)
from backplane.ids import Epoch, JobId, ViewId, VolumeId
from backplane.scsi.designator import designator_of
from storage_node.core import volume_state
from storage_node.core.admission import WriteGate
from storage_node.core.floors import Floor
from storage_node.core.volume_state import (
    DiscardData,
    DropView,
    DropVolume,
    Effect,
    MakeVolume,
    RecordView,
    RecordVolume,
    State,
    SyncData,
    VolumeBook,
)

VOLUME = VolumeId("11" * 16)
OTHER = VolumeId("22" * 16)
VIEW = ViewId("33" * 16)
JOB = JobId(4)


def create(book: VolumeBook, volume: VolumeId = VOLUME, state: str = "online") -> list[Effect]:
    return book.create(volume=volume, name="disk", size_bytes=1 << 20, block_bytes=512, state=state)


def book_with_volume(*, state: str = "online", is_written: bool = False) -> VolumeBook:
    book = VolumeBook()
    create(book, state=state)
    if is_written:
        book.written(VOLUME)
    return book


def floor(epoch: int, holder: bytes = b"") -> Floor:
    return Floor(epoch=Epoch(epoch), holder=holder)


def offline(book: VolumeBook, *, epoch: int = 5, job: int = JOB, is_forced: bool = False,
            floor_: Floor | None = None) -> list[Effect]:  # fmt: skip
    return book.offline(
        VOLUME,
        job=JobId(job),
        epoch=Epoch(epoch),
        is_forced=is_forced,
        floor=floor_ or floor(0),
    )


def restoring() -> VolumeBook:
    """A volume that is offline and discarded, ready to be written."""
    book = book_with_volume()
    offline(book)
    book.discarded(VOLUME)
    return book


def publish(book: VolumeBook, state: str = "online", *, epoch: int = 9, job: int = JOB,
            floor_: Floor | None = None) -> list[Effect]:  # fmt: skip
    return book.publish(
        VOLUME, job=JobId(job), epoch=Epoch(epoch), state=state, floor=floor_ or floor(epoch)
    )


def hold(book: VolumeBook, view: ViewId = VIEW) -> list[Effect]:
    return book.make_view(view, VOLUME, job=JOB, ttl_s=10.0, created="now")


# --- making --------------------------------------------------------------------------------------


def test_a_volume_is_made_once_and_the_same_message_again_finds_it() -> None:
    book = VolumeBook()
    (made,) = create(book)
    assert made == MakeVolume(book.volumes[VOLUME])
    record = book.volumes[VOLUME]
    assert (record.blocks, record.is_empty, record.designator) == (
        2048,
        True,
        designator_of(VOLUME),
    )
    assert create(book) == []
    with pytest.raises(RefusedError):
        book.create(volume=VOLUME, name="disk", size_bytes=512, block_bytes=512, state="online")
    book.check_invariants()


@pytest.mark.parametrize(
    ("size", "block"), [(0, 512), (511, 512), (1 << 57, 512), (4096, 1000), (4096, 0)]
)
def test_impossible_geometry_is_refused(size: int, block: int) -> None:
    with pytest.raises(UsageError):
        VolumeBook().create(
            volume=VOLUME, name="d", size_bytes=size, block_bytes=block, state="online"
        )


@pytest.mark.parametrize("name", ["", "11", "../../etc/passwd", "G" * 32, "AA" * 16])
def test_what_is_no_uuid_is_refused(name: str) -> None:
    book = book_with_volume()
    with pytest.raises(UsageError):
        create(book, VolumeId(name))
    with pytest.raises(UsageError):
        hold(book, ViewId(name))


def test_a_volume_is_not_created_in_the_middle_of_a_restore() -> None:
    with pytest.raises(UsageError):
        create(VolumeBook(), state="restoring")


def test_a_volume_that_could_not_be_made_does_not_exist() -> None:
    book = book_with_volume()
    book.not_made(VOLUME)
    assert not book.volumes
    assert create(book)


def test_the_number_of_volumes_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_state, "VOLUMES_MAX", 1)
    book = book_with_volume()
    with pytest.raises(RefusedError):
        create(book, OTHER)


def test_something_attached_is_never_taken_for_empty_and_belongs_to_one_volume() -> None:
    book = VolumeBook()
    (made,) = book.attach(volume=VOLUME, name="a", path="/dev/x", size_bytes=4096, block_bytes=512)
    assert isinstance(made, MakeVolume)
    assert not made.record.is_empty
    assert not book.attach(volume=VOLUME, name="a", path="/dev/x", size_bytes=4096, block_bytes=512)
    with pytest.raises(RefusedError):
        book.attach(volume=OTHER, name="b", path="/dev/x", size_bytes=4096, block_bytes=512)


def test_deleting_is_refused_while_somebody_needs_the_volume() -> None:
    book = book_with_volume()
    with pytest.raises(BusyError):
        book.delete(VOLUME, has_writer=True)
    hold(book)
    with pytest.raises(BusyError):
        book.delete(VOLUME, has_writer=False)
    book.release(VIEW)
    offline(book)
    book.discarded(VOLUME)
    with pytest.raises(BusyError):
        book.delete(VOLUME, has_writer=False)
    publish(book)
    (dropped,) = book.delete(VOLUME, has_writer=False)
    assert isinstance(dropped, DropVolume)
    assert book.delete(VOLUME, has_writer=False) == []


# --- restore -------------------------------------------------------------------------------------


def test_the_first_write_makes_a_volume_not_empty_and_is_recorded_once() -> None:
    book = book_with_volume()
    (recorded,) = book.written(VOLUME)
    assert isinstance(recorded, RecordVolume)
    assert not recorded.record.is_empty
    assert book.written(VOLUME) == []


def test_a_restore_takes_an_empty_volume_offline_and_publishes_it() -> None:
    """Also an empty one is discarded: a writer's first write may have been under way."""
    book = book_with_volume()
    recorded, discard = offline(book)
    assert isinstance(recorded, RecordVolume)
    assert recorded.record.state is State.RESTORING
    assert discard == DiscardData(VOLUME)
    book.discarded(VOLUME)
    assert book.gate(VOLUME) is WriteGate.OPEN
    synced, published = publish(book)
    assert synced == SyncData(VOLUME)
    assert isinstance(published, RecordVolume)
    assert published.record.state is State.ONLINE
    assert published.record.job == 0
    book.check_invariants()


def test_a_volume_with_content_needs_force_and_is_discarded_before_writers_come() -> None:
    book = book_with_volume(is_written=True)
    with pytest.raises(RefusedError):
        offline(book)
    recorded, discard = offline(book, is_forced=True)
    assert isinstance(recorded, RecordVolume)
    assert recorded.record.needs_discard
    assert discard == DiscardData(VOLUME)
    assert book.gate(VOLUME) is WriteGate.OFFLINE
    with pytest.raises(RefusedError):
        publish(book)
    assert offline(book, is_forced=True) == [DiscardData(VOLUME)]
    (done,) = book.discarded(VOLUME)
    assert isinstance(done, RecordVolume)
    assert done.record.is_empty
    assert book.gate(VOLUME) is WriteGate.OPEN
    book.check_invariants()


def test_a_doubled_offline_never_discards_what_was_restored_since() -> None:
    book = book_with_volume(is_written=True)
    offline(book, is_forced=True)
    book.discarded(VOLUME)
    book.written(VOLUME)
    assert offline(book, is_forced=True) == []
    publish(book)
    with pytest.raises(StaleError):
        offline(book, is_forced=True, floor_=floor(9))
    assert book.volumes[VOLUME].state is State.ONLINE


def test_two_restores_do_not_share_a_volume() -> None:
    book = book_with_volume()
    offline(book)
    with pytest.raises(BusyError):
        offline(book, job=99, epoch=6)
    with pytest.raises(RefusedError):
        publish(book, job=99)


def test_a_held_or_imported_volume_is_no_restore_target() -> None:
    book = book_with_volume()
    hold(book)
    with pytest.raises(BusyError):
        offline(book, is_forced=True)
    with pytest.raises(BusyError):
        offline(book_with_volume(state="importing"))
    with pytest.raises(NotFoundError):
        offline(VolumeBook())


@pytest.mark.parametrize("wrong", [floor(0), floor(8), floor(10), floor(9, b"writer" * 5 + b"..")])
def test_publishing_needs_a_floor_of_its_own_epoch_that_no_writer_holds(wrong: Floor) -> None:
    book = restoring()
    with pytest.raises(StaleError):
        publish(book, floor_=wrong)
    assert book.volumes[VOLUME].state is State.RESTORING


class PublishUnfenced(VolumeBook):
    def _may_publish(self, *, epoch: Epoch, floor: Floor) -> bool:
        return True


def test_without_the_publish_rule_a_volume_goes_online_under_its_writer() -> None:
    book = PublishUnfenced()
    create(book)
    offline(book)
    book.discarded(VOLUME)
    assert publish(book, floor_=floor(5, b"w" * 32))


def test_publishing_twice_is_publishing_once_and_the_other_way_is_refused() -> None:
    book = book_with_volume(state="importing")
    publish(book)
    assert publish(book) == []
    with pytest.raises(RefusedError):
        publish(book, "restore-failed")
    with pytest.raises(RefusedError):
        publish(book, epoch=10)
    with pytest.raises(UsageError):
        publish(book, "importing")


def test_a_failed_restore_stays_offline_until_the_next_one() -> None:
    book = restoring()
    book.written(VOLUME)
    (recorded,) = publish(book, "restore-failed")
    assert isinstance(recorded, RecordVolume)
    assert book.gate(VOLUME) is WriteGate.OFFLINE
    with pytest.raises(RefusedError):
        hold(book)
    assert offline(book, epoch=10, is_forced=True, floor_=floor(9))
    book.check_invariants()


def test_a_flush_that_failed_ends_a_restore_and_leaves_an_online_volume_alone() -> None:
    book = book_with_volume()
    assert book.failed(VOLUME) == []
    offline(book)
    (recorded,) = book.failed(VOLUME)
    assert isinstance(recorded, RecordVolume)
    assert recorded.record.state is State.RESTORE_FAILED
    with pytest.raises(RefusedError):
        publish(book)
    book.check_invariants()


# --- views ---------------------------------------------------------------------------------------


def test_a_view_holds_its_volume_until_it_is_released() -> None:
    book = book_with_volume()
    (recorded,) = hold(book)
    assert isinstance(recorded, RecordView)
    assert recorded.record.designator == designator_of(VIEW)
    assert book.gate(VOLUME) is WriteGate.HELD
    assert hold(book) == []
    assert book.release(VIEW) == [DropView(recorded.record)]
    assert book.gate(VOLUME) is WriteGate.OPEN
    assert book.release(VIEW) == []
    book.check_invariants()


def test_a_late_double_does_not_bring_a_released_view_back() -> None:
    book = book_with_volume()
    hold(book)
    book.release(VIEW)
    with pytest.raises(NotFoundError):
        hold(book)
    assert book.gate(VOLUME) is WriteGate.OPEN


def test_two_views_hold_a_volume_until_both_are_released() -> None:
    book = book_with_volume()
    hold(book)
    hold(book, ViewId("44" * 16))
    book.release(VIEW)
    assert book.gate(VOLUME) is WriteGate.HELD


def test_a_view_belongs_to_one_volume_and_needs_it_online() -> None:
    book = book_with_volume()
    create(book, OTHER, "importing")
    hold(book)
    with pytest.raises(RefusedError):
        book.may_view(VIEW, OTHER)
    with pytest.raises(RefusedError):
        book.may_view(ViewId("55" * 16), OTHER)
    with pytest.raises(NotFoundError):
        book.may_view(ViewId("55" * 16), VolumeId("66" * 16))


def test_the_number_of_views_and_of_remembered_releases_has_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(volume_state, "VIEWS_MAX", 1)
    monkeypatch.setattr(volume_state, "RELEASED_VIEWS_MAX", 2)
    book = book_with_volume()
    hold(book)
    with pytest.raises(RefusedError):
        hold(book, ViewId("44" * 16))
    for number in range(5):
        book.release(ViewId(f"{number:032x}"))
    assert len(book._gone_views) == 2


def test_every_double_of_a_request_that_found_no_quiet_gets_the_same_answer() -> None:
    book = book_with_volume()
    told = book.give_up_view(VIEW, "no 3 s without writes within 80 s")
    with pytest.raises(NotQuietError, match="within 80 s"):
        book.may_view(VIEW, VOLUME)
    assert told.message == "no 3 s without writes within 80 s"
    book.release(VIEW)
    with pytest.raises(NotFoundError, match="was released"):
        book.may_view(VIEW, VOLUME)
