"""The source of a backup: its static view."""

from __future__ import annotations

import pytest

from backplane.errors import BackupError, MediumError, VolumeError
from backplane.scsi.sense import Sense, SenseKey
from backplane.wire.grants import Rights
from backplane.wire.messages import UnitFence
from controller.core.extent_runs import ExtentRuns
from controller.core.media import Mounted
from controller.core.part_source import Unread, ViewSource
from controller.core.planner import PartData
from controller.core.procedure import Ask, NotYet
from tests.site.site import DATA, Site

DATA_OF_PART = PartData(
    runs=ExtentRuns([(0, 5)]), block_bytes=512, record_bytes=2048, stream_start=0, stream_bytes=2560
)


@pytest.fixture
def source(site: Site) -> ViewSource:
    site.make_volume("vol", data=DATA)
    number = site.submit("backup", volume="vol")
    while not site.items(number):
        site.deliver(*site.wire.pop(0))
    return ViewSource(site.machine, site.machine.jobs[number])  # type: ignore[index]


def test_a_view_is_read_by_blocks_and_its_padding_does_not_count(source: ViewSource) -> None:
    assert source.counted(DATA_OF_PART).bytes_before(2) == 2560
    planned, use = source.plan(DATA_OF_PART, first=1, tape=b"12345678", identifier=1)  # type: ignore[arg-type]
    assert (planned.records, planned.data_bytes, planned.padded_bytes) == (1, 512, 1536)
    assert (use.node, use.rights, use.extents) == ("disk", Rights.READ, ((4, 1),))


def test_a_view_is_ready_and_claims_nothing(source: ViewSource) -> None:
    assert list(source.ready()) == []
    for answer in (NotYet("waiting"), object()):
        assert source.claim(lambda answer=answer: answer) is answer  # type: ignore[misc,return-value]
    source.give_back()
    assert not isinstance(source.claim(lambda: NotYet("")), Mounted)


def test_a_fence_that_the_disk_node_refuses_is_no_fault_of_a_cartridge(source: ViewSource) -> None:
    steps = source.fence()
    ask = next(steps)
    assert isinstance(ask, Ask)
    assert (ask.node, type(ask.make(7))) == ("disk", UnitFence)
    with pytest.raises(BackupError, match="no such unit") as refused:
        steps.throw(VolumeError("no such unit"))
    assert not isinstance(refused.value, VolumeError)


@pytest.mark.parametrize(("lba", "words"), [(9, "vol cannot be read at LBA 9"), (None, "be read$")])
def test_a_view_that_cannot_be_read_ends_the_job(
    site: Site, source: ViewSource, lba: int | None, words: str
) -> None:
    told = Sense(key=SenseKey.MEDIUM_ERROR, asc=0x11, ascq=0, information=lba)
    row = site.items(1)[0]
    steps = source.cannot_read(Unread(told, row, 0, 0))
    ask = steps.send(None)
    assert isinstance(ask, Ask)
    reply = site.disk.answer(ask.make(7))
    with pytest.raises(MediumError, match=words):
        steps.send(reply)
