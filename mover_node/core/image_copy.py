"""13h tape image copy: records and filemarks from one tape to another, as they come (SPC-4 6.4.6.16).

Lengths are not stated anywhere: each read asks for the largest record that both drives and we can take, and a shorter
record (ILI) is the normal case.  With FIXED=1 the source is read block by block, and every other length is an error.
The copy ends at end of data or end of partition, or behind COUNT filemarks in a row; they are copied, too.  Residue of
other segments is neither used nor touched.
"""

from __future__ import annotations

from enum import Enum

from backplane.scsi.sense import SenseKey
from mover_node.core import abort
from mover_node.core.abort import CopyAbortedError
from mover_node.core.commands import Completed, WriteFilemarks
from mover_node.core.pieces import Piece
from mover_node.core.units import Role, Steps, Unit, Units


class _Found(Enum):
    RECORD = "a record"
    FILEMARK = "a filemark"
    END = "end of data or of the partition"
    TROUBLE = "anything else"


def copy_image(
    units: Units, source: Unit, target: Unit, count: int, *, bytes_max: int
) -> Steps[None]:
    """Copy until `count` filemarks in a row (0: never), or the end of data."""
    most = [bytes_max, source.record_bytes_max, target.record_bytes_max]
    length = source.block_bytes or min(size for size in most if size)
    filemarks = 0
    while not count or filemarks < count:
        piece, answer = yield from units.read_record(source, Role.SOURCE, length, takes_short=True)
        match _found(answer, is_fixed=bool(source.block_bytes)):
            case _Found.RECORD:
                filemarks = 0
                account = units.account(source)
                account.bytes_read += len(piece.data)
                account.records_read += 1
                yield from _copy_record(units, piece, target)
            case _Found.FILEMARK:
                filemarks += 1
                yield from _copy_filemark(units, target)
            case _Found.END:
                return
            case _Found.TROUBLE:
                raise units.failed(source, Role.SOURCE, answer)


def _copy_record(units: Units, piece: Piece, target: Unit) -> Steps[None]:
    try:
        answer = yield from units.write(target, [piece])
    except CopyAbortedError:
        units.ledger.discard({piece.origin: len(piece.data)})
        raise
    units.account(target).bytes_written += len(piece.data)
    units.account(target).records_written += 1
    if not answer.is_good:
        raise units.failed(target, Role.DESTINATION, answer)


def _copy_filemark(units: Units, target: Unit) -> Steps[None]:
    # Not immediate: this copy has no other point at which a late write error could still be reported.
    command = WriteFilemarks(target.cscd, 1, is_immediate=False)
    answer = yield from units.command(target, command)
    if abort.is_written(answer):
        units.account(target).filemarks_written += 1
    if not answer.is_good:
        raise units.failed(target, Role.DESTINATION, answer)


def _found(answer: Completed, *, is_fixed: bool) -> _Found:
    if answer.is_good:
        return _Found.RECORD
    sense = abort.sense_of(answer)
    if sense is None:
        return _Found.TROUBLE
    if sense.key is SenseKey.NO_SENSE and sense.filemark:
        return _Found.FILEMARK
    if sense.key is SenseKey.NO_SENSE and sense.incorrect_length:
        is_short = sense.information is not None and sense.information > 0
        return _Found.RECORD if is_short and not is_fixed else _Found.TROUBLE
    if sense.key is SenseKey.BLANK_CHECK and (sense.asc, sense.ascq) == (0x00, 0x05):
        return _Found.END
    if sense.key is SenseKey.MEDIUM_ERROR and sense.end_of_medium:
        return _Found.END
    return _Found.TROUBLE
