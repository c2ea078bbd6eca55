"""Performing commands, and stopping."""

from __future__ import annotations

import threading
from typing import Any

from backplane.errors import UnreachableError
from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.cscd import block_cscd, stream_cscd
from backplane.scsi.parameter_list import ParameterList
from backplane.scsi.segment import BlockOffsetToStream
from backplane.scsi.sense import Sense, SenseKey
from backplane.wire.frames import Status
from mover_node.core.abort import Ended
from mover_node.core.copy_manager import CopyManager
from mover_node.executor import Execution, Performer
from mover_node.runs import InFlight
from mover_node.streams.base import Device
from mover_node.streams.memory import MemoryCarrier, MemoryDisk, MemoryTape

RECORD = 1024


class Stuck(MemoryTape):
    """A tape whose answers never come, until somebody gives up."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reached = threading.Event()
        self.is_aborted = threading.Event()

    def receive_answer(self) -> Any:
        self.is_reached.set()
        assert self.is_aborted.wait(10)
        raise UnreachableError("shut down")

    def has_answer(self) -> bool:
        return False

    def abort(self) -> None:
        self.is_aborted.set()


def execution(tape: MemoryTape, ended: list[Ended]) -> Execution:
    disk = MemoryDisk(bytes(RECORD * 40), block_bytes=512)
    cscds = (block_cscd(b"disk", block_bytes=512), stream_cscd(b"tape"))
    segment = BlockOffsetToStream(
        source_cscd_descriptor_id=0,
        destination_cscd_descriptor_id=1,
        stream_device_transfer_length=RECORD,
        number_of_bytes=RECORD * 40,
        block_device_logical_block_address=0,
    )
    parameters = ParameterList(list_identifier=1, cscds=cscds, segments=(segment,))
    manager = CopyManager(parameters, operating=MOVER_PARAMETERS)
    devices: dict[bytes, Device] = {b"disk": disk, b"tape": tape}
    performer = Performer(parameters, devices.__getitem__, MemoryCarrier(), limits=InFlight())
    return Execution(manager, performer, name="item 1", on_ended=ended.append)


def test_an_item_runs_in_its_thread_and_reports_its_end() -> None:
    ended: list[Ended] = []
    tape = MemoryTape()
    item = execution(tape, ended)
    item.start()
    item.join()
    assert [e.status for e in ended] == [Status.GOOD]
    assert len(tape.objects) == 40
    progress = item.progress()
    assert (progress.bytes_read, progress.bytes_written) == (RECORD * 40, RECORD * 40)


def test_an_item_that_is_stuck_ends_when_it_is_aborted() -> None:
    ended: list[Ended] = []
    tape = Stuck()
    item = execution(tape, ended)
    item.start()
    assert tape.is_reached.wait(10)
    item.abort("the lease is over")
    item.join()
    (end,) = ended
    sense = Sense.decode(end.sense)
    assert (end.status, end.detail) == (Status.TASK_ABORTED, "the lease is over")
    assert (sense.key, sense.asc, sense.ascq) == (SenseKey.COPY_ABORTED, 0x2F, 0x02)


def test_an_item_that_was_aborted_before_it_began_opens_nothing() -> None:
    ended: list[Ended] = []
    tape = MemoryTape()
    item = execution(tape, ended)
    item.abort("revoked")
    item.start()
    item.join()
    assert [e.status for e in ended] == [Status.TASK_ABORTED]
    assert tape.objects == []


def test_a_crash_of_the_copy_manager_ends_the_item_and_not_the_mover(caplog: Any) -> None:
    ended: list[Ended] = []
    tape = MemoryTape()
    tape.begin_record = None  # type: ignore[assignment,method-assign]
    item = execution(tape, ended)
    item.start()
    item.join()
    assert [e.status for e in ended] == [Status.TASK_ABORTED]
    assert "crashed" in ended[0].detail
    assert "copy manager crashed" in caplog.text
