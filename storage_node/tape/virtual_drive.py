"""A drive over cartridge files, with the semantics of a real one (SSC; tape reference sections 4 to 7).

What a tape cannot promise is not promised here: GOOD for a record or an immediate filemark means "in the buffer".
Synchronous filemarks, motions, unloading and reads flush.  Since bytes go to the file at once, an error is found by the
command that causes it, or by the flush; there are no deferred errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from backplane.crc import EMPTY, combine, crc32c
from backplane.tape_format import VolumeHeader
from storage_node.core import tape_sense
from storage_node.core.tape_index import ENTRY_BYTES, Entry
from storage_node.core.tape_position import (
    RECORD_BYTES_MAX,
    Ending,
    Motion,
    PositionReport,
    Room,
    SpaceCode,
    file_number,
    locate_file,
    locate_object,
    space_blocks,
    space_filemarks,
    variable_read,
)
from storage_node.tape.cartridge import DISK_FULL, NO_SPACE, Cartridge
from storage_node.tape.drive import FILEMARKS_PER_COMMAND_MAX, Outcome
from storage_node.tape.head import TapeHead
from storage_node.tape.record_compression import RecordCompressor, decompress_record
from storage_node.tape.volume_reader import Label, TapeEnd, find_last_trailer, read_label


class VirtualDrive(TapeHead):
    """Implements `Drive`, and `LibraryDrive`."""

    # --- looking ---------------------------------------------------------------------------------

    @contextmanager
    def looking(self) -> Iterator[VirtualDrive]:
        """Give a second head for reading: this one stays where it is, and its buffer is not flushed."""
        yield self.side_view()

    def label(self) -> Label:
        """Return the label, read by a second head."""
        with self.looking() as head:
            return read_label(head)

    def last_trailer(self, header: VolumeHeader) -> TapeEnd:
        """Return how the tape ends, read by a second head."""
        with self.looking() as head:
            return find_last_trailer(head, header)

    def digests(self, start: int, end: int) -> tuple[bytes, int]:
        """Return `stored_crcs`, and `end`."""
        return self.stored_crcs(start, end), end

    # --- writing ---------------------------------------------------------------------------------

    def write_record(
        self, data: memoryview, *, crc32c: int, expected_position: int | None = None
    ) -> Outcome:
        """Write one record."""
        cartridge = self._ready_to_write(expected_position)
        if isinstance(cartridge, Outcome):
            return cartridge
        if len(data) > RECORD_BYTES_MAX:
            return self._check(tape_sense.INVALID_FIELD)
        if _crc32c(data) != crc32c:
            return self._check(tape_sense.GUARD_CHECK)
        if not data:
            return self._good()
        room = self._put(cartridge, data, crc32c)
        if isinstance(room, Outcome):
            return room
        if room is Room.NONE:
            return self._check(tape_sense.OVERFLOW, information=len(data), end_of_medium=True)
        return self._written(room)

    def write_blocks(
        self, data: memoryview, *, crc32c: int, expected_position: int | None = None
    ) -> Outcome:
        """Write records of the block length of the mode parameters."""
        cartridge = self._ready_to_write(expected_position)
        if isinstance(cartridge, Outcome):
            return cartridge
        length = self._mode.block_length
        if length == 0 or len(data) % length or len(data) > RECORD_BYTES_MAX:
            return self._check(tape_sense.INVALID_FIELD)
        if _crc32c(data) != crc32c:
            return self._check(tape_sense.GUARD_CHECK)
        worst = Room.FREE
        for start in range(0, len(data), length):
            block = data[start : start + length]
            room = self._put(cartridge, block, _crc32c(block))
            if isinstance(room, Outcome):
                return room
            if room is Room.NONE:
                left = (len(data) - start) // length
                return self._check(tape_sense.OVERFLOW, information=left, end_of_medium=True)
            worst = _worse(worst, room)
        return self._written(worst)

    def write_filemarks(
        self, count: int, *, immediate: bool = False, expected_position: int | None = None
    ) -> Outcome:
        """Write filemarks; unless `immediate`, return when everything before is durable."""
        if count == 0 and not immediate:
            return self.flush(expected_position=expected_position)
        cartridge = self._ready_to_write(expected_position)
        if isinstance(cartridge, Outcome):
            return cartridge
        if not 0 <= count <= FILEMARKS_PER_COMMAND_MAX:
            return self._check(tape_sense.INVALID_FIELD)
        if immediate and not self._mode.is_buffered:
            return self._check(tape_sense.INVALID_FIELD)
        worst = Room.FREE
        for left in range(count, 0, -1):
            room = self._put(cartridge, None, EMPTY)
            if isinstance(room, Outcome):
                return room
            if room is Room.NONE:
                failed = None if immediate else self._flushed(cartridge)
                return failed or self._check(
                    tape_sense.OVERFLOW, information=left, end_of_medium=True
                )
            worst = _worse(worst, room)
        if not immediate:
            failed = self._flushed(cartridge)
            if failed is not None:
                return failed
        return self._written(worst)

    def flush(self, *, expected_position: int | None = None) -> Outcome:
        """Return when everything written is durable."""
        cartridge = self._ready_to_move(expected_position)
        return cartridge if isinstance(cartridge, Outcome) else self._good()

    def allow_overwrite(self, object_number: int | None) -> Outcome:
        """Permit overwriting at the current position, which must be `object_number`; None takes it back."""
        cartridge = self._ready()
        if isinstance(cartridge, Outcome):
            return cartridge
        if object_number is not None and object_number != self._position:
            return self._check(tape_sense.INVALID_FIELD)
        if object_number is not None and cartridge.info.is_worm:
            return self._check(tape_sense.OVERWRITE_REFUSED)
        self._permission = object_number
        return self._good()

    def erase(self, *, expected_position: int | None = None) -> Outcome:
        """Make the current position end of data."""
        cartridge = self._ready_to_write(expected_position)
        if isinstance(cartridge, Outcome):
            return cartridge
        return self._make_end_of_data(cartridge) or self._good()

    def _ready_to_write(self, expected_position: int | None) -> Cartridge | Outcome:
        cartridge = self._ready(expected_position)
        if isinstance(cartridge, Outcome):
            return cartridge
        if cartridge.info.is_write_protected or self._is_side_view:
            return self._check(tape_sense.WRITE_PROTECTED)
        if not cartridge.recovered.is_appendable:
            return self._check(tape_sense.END_UNKNOWN)
        is_overwrite = self._position < cartridge.object_count
        is_protected = self._mode.is_append_only and self._permission != self._position
        if is_overwrite and (is_protected or cartridge.info.is_worm):
            return self._check(tape_sense.OVERWRITE_REFUSED)
        return cartridge

    def _make_end_of_data(self, cartridge: Cartridge) -> Outcome | None:
        """Destroy everything from the current position on."""
        if self._position == cartridge.object_count:
            return None
        self._permission = None
        try:
            cartridge.truncate(self._position)
        except OSError:
            return self._check(tape_sense.WRITE_ERROR)
        return None

    @cached_property
    def _compressor(self) -> RecordCompressor:
        return RecordCompressor()  # a drive that only reads has none

    def _put(self, cartridge: Cartridge, data: memoryview | None, crc: int) -> Room | Outcome:
        """Write one object, unless it does not fit."""
        before = cartridge.charge_before(self._position)
        if before > self._marks_good_until or (self.room is not None and self.room.is_short):
            self._look_at_space(cartridge)
        body, length = data, 0
        if data is not None and self._mode.is_compressing:
            compressed = self._compressor.compress(data)
            if compressed is not None:
                body, length = memoryview(compressed), len(data)
        charge = ENTRY_BYTES + (0 if body is None else len(body))
        room = self._marks.room(before, charge)
        if room is not Room.FREE:
            # The disk below may have got room since it was looked at: then the end is not near.
            self._look_at_space(cartridge)
            room = self._marks.room(before, charge)
        if room is Room.NONE:
            return room
        failed = self._make_end_of_data(cartridge)
        if failed is not None:
            return failed
        try:
            if body is None:
                cartridge.append_filemark()
            else:
                cartridge.append_record(body, crc32c=crc, length=length)
        except OSError as error:
            if error.errno in NO_SPACE and cartridge.failure is None:
                # The file system is full before the tape is: this is the physical end now.
                self._marks_good_until = -1
                if error.errno in DISK_FULL:
                    cartridge.on_no_space()
                return Room.NONE
            return self._check(tape_sense.WRITE_ERROR)
        self._position += 1
        if room is Room.EARLY_WARNING and before < self._marks.early_warning:
            # SEW: what led up to early warning is on the medium before anybody hears of it.
            return self._flushed(cartridge) or room
        if not self._mode.is_buffered or cartridge.unflushed_bytes > self._unflushed_bytes_max:
            return self._flushed(cartridge) or room
        return room

    def _written(self, room: Room) -> Outcome:
        """Report success, with the warning that belongs to the place."""
        if room is Room.EARLY_WARNING:
            return self._check(tape_sense.END_OF_MEDIUM, information=0, end_of_medium=True)
        if room is Room.PROGRAMMABLE_EARLY_WARNING:
            return self._check(tape_sense.PROGRAMMABLE_WARNING, information=0, end_of_medium=True)
        return self._good()

    # --- reading ---------------------------------------------------------------------------------

    def read_record(
        self,
        buffer: memoryview,
        *,
        suppress_length: bool = False,
        expected_position: int | None = None,
    ) -> Outcome:
        """Read the next record into the buffer, whose size is the transfer length."""
        cartridge = self._ready_to_move(expected_position)
        if isinstance(cartridge, Outcome):
            return cartridge
        if len(buffer) > RECORD_BYTES_MAX:
            return self._check(tape_sense.INVALID_FIELD)
        if not buffer:
            return self._good()
        entry = self._next_record(cartridge, residual=len(buffer))
        if isinstance(entry, Outcome):
            return entry
        length = variable_read(
            entry.length,
            len(buffer),
            suppress=suppress_length,
            block_length=self._mode.block_length,
        )
        data = buffer[: length.delivered_bytes]
        crc = self._fetch(cartridge, entry, data)
        self._position += 1
        if crc is None:
            return self._check(tape_sense.READ_ERROR, information=len(buffer))
        if not length.is_incorrect:
            # What is compressed cannot be sent from the file.
            file = None if entry.stored else cartridge.file_range(entry)
            return self._good(data=data, crc=crc, file=file)
        return self._check(
            tape_sense.INCORRECT_LENGTH,
            information=length.information,
            incorrect_length=True,
            data=data,
            crc=crc,
        )

    def read_blocks(
        self, buffer: memoryview, *, count: int, suppress_length: bool = False
    ) -> Outcome:
        """Read `count` records of the block length of the mode parameters."""
        cartridge = self._ready_to_move()
        if isinstance(cartridge, Outcome):
            return cartridge
        length = self._mode.block_length
        if suppress_length or length == 0 or not 0 <= count * length <= len(buffer):
            return self._check(tape_sense.INVALID_FIELD)
        crc = EMPTY
        for done in range(count):
            data, left = buffer[: done * length], count - done
            entry = self._next_record(cartridge, residual=left, data=data, crc=crc)
            if isinstance(entry, Outcome):
                return entry
            block = buffer[done * length : (done + 1) * length]
            is_incorrect = entry.length != length
            piece = None if is_incorrect else self._fetch(cartridge, entry, block)
            self._position += 1
            if piece is None:
                return self._check(
                    tape_sense.INCORRECT_LENGTH if is_incorrect else tape_sense.READ_ERROR,
                    information=left,
                    incorrect_length=is_incorrect,
                    data=data,
                    crc=crc,
                )
            crc = combine(crc, piece, second_bytes=length)
        return self._good(data=buffer[: count * length], crc=crc)

    def _next_record(
        self,
        cartridge: Cartridge,
        *,
        residual: int,
        data: memoryview | None = None,
        crc: int = EMPTY,
    ) -> Entry | Outcome:
        """Return the record at the position; or pass what is there instead and say so."""
        if self._position == cartridge.object_count:
            is_beyond = cartridge.used_bytes >= self._marks.early_warning
            return self._check(
                tape_sense.END_OF_DATA,
                information=residual,
                end_of_medium=is_beyond,
                data=data,
                crc=crc,
            )
        entry = cartridge.entry(self._position)
        if entry is None:
            self._position += 1
            return self._check(tape_sense.READ_ERROR, information=residual, data=data, crc=crc)
        if entry.is_filemark:
            self._position += 1
            return self._check(tape_sense.FILEMARK, information=residual, data=data, crc=crc)
        return entry

    def _fetch(self, cartridge: Cartridge, entry: Entry, data: memoryview) -> int | None:
        """Read and check a whole record, deliver its beginning; return the CRC of that, None if it is bad.

        What is not wanted is read, too: only the whole record can be checked, and unchecked bytes are not delivered.
        """
        if entry.stored:
            return self._fetch_compressed(cartridge, entry, data)
        rest_bytes = entry.length - len(data)
        if len(self._scratch) < rest_bytes:
            self._scratch = bytearray(rest_bytes)
        rest = memoryview(self._scratch)[:rest_bytes]
        try:
            if cartridge.read(entry, [data, rest] if rest_bytes else [data]) != entry.length:
                return None
        except OSError:
            return None
        crc = _crc32c(data)
        whole = crc32c(rest, start=crc) if rest_bytes else crc
        return crc if whole == entry.crc32c else None

    def _fetch_compressed(self, cartridge: Cartridge, entry: Entry, data: memoryview) -> int | None:
        if len(self._scratch) < entry.stored:
            self._scratch = bytearray(entry.stored)
        stored = memoryview(self._scratch)[: entry.stored]
        try:
            if cartridge.read(entry, [stored]) != entry.stored:
                return None
        except OSError:
            return None
        record = decompress_record(stored, entry.length)
        if record is None or crc32c(record) != entry.crc32c:
            return None
        data[:] = record[: len(data)]
        return entry.crc32c if len(data) == entry.length else _crc32c(data)

    # --- motion ----------------------------------------------------------------------------------

    def space(self, code: SpaceCode | int, count: int = 0) -> Outcome:
        """Pass records or filemarks, forward or backward, or go to end of data."""
        cartridge = self._ready_to_move()
        if isinstance(cartridge, Outcome):
            return cartridge
        end, marks = cartridge.object_count, cartridge.filemarks
        if code == SpaceCode.BLOCKS:
            return self._moved(
                space_blocks(self._position, count, filemarks=marks, end_of_data=end)
            )
        if code == SpaceCode.FILEMARKS:
            return self._moved(
                space_filemarks(self._position, count, filemarks=marks, end_of_data=end)
            )
        if code == SpaceCode.END_OF_DATA:
            return self._moved(Motion(end))
        return self._check(tape_sense.INVALID_FIELD)

    def locate(self, object_number: int, *, partition: int | None = None) -> Outcome:
        """Go to an object; there is only partition 0."""
        cartridge = self._ready_to_move()
        if isinstance(cartridge, Outcome):
            return cartridge
        if partition not in (None, 0) or object_number < 0:
            return self._check(tape_sense.INVALID_FIELD)
        return self._located(locate_object(object_number, end_of_data=cartridge.object_count))

    def locate_file(self, file_number: int) -> Outcome:
        """Go to the beginning of a logical file."""
        cartridge = self._ready_to_move()
        if isinstance(cartridge, Outcome):
            return cartridge
        if file_number < 0:
            return self._check(tape_sense.INVALID_FIELD)
        end, marks = cartridge.object_count, cartridge.filemarks
        return self._located(locate_file(file_number, filemarks=marks, end_of_data=end))

    def rewind(self) -> Outcome:
        """Go to the beginning; flushes."""
        cartridge = self._ready_to_move()
        return cartridge if isinstance(cartridge, Outcome) else self._moved(Motion(0))

    def _moved(self, motion: Motion) -> Outcome:
        self._position = motion.position
        if motion.ending is Ending.DONE:
            return self._good()
        if motion.ending is Ending.FILEMARK:
            return self._check(tape_sense.FILEMARK, information=motion.residual)
        if motion.ending is Ending.END_OF_DATA:
            return self._check(tape_sense.END_OF_DATA, information=motion.residual)
        return self._check(tape_sense.BEGINNING, information=motion.residual, end_of_medium=True)

    def _located(self, motion: Motion) -> Outcome:
        self._position = motion.position
        return self._good() if motion.ending is Ending.DONE else self._check(tape_sense.END_OF_DATA)

    def read_position(self) -> Outcome:
        """Return a `PositionReport`."""
        cartridge = self._ready()
        if isinstance(cartridge, Outcome):
            return cartridge
        charge = cartridge.charge_before(self._position)
        durable = min(self._position, cartridge.durable_count)
        report = PositionReport(
            object_number=self._position,
            file_number=file_number(self._position, filemarks=cartridge.filemarks),
            durable_object=durable,
            buffered_bytes=cartridge.unflushed_bytes,
            is_beyond_early_warning=charge >= self._marks.early_warning,
            is_beyond_programmable_early_warning=charge >= self._marks.programmable_early_warning,
        )
        return self._good(report=report)


def _crc32c(data: memoryview) -> int:
    """`crc32c`, where a parameter has that name."""
    return crc32c(data)


def _worse(one: Room, other: Room) -> Room:
    order = (Room.FREE, Room.PROGRAMMABLE_EARLY_WARNING, Room.EARLY_WARNING, Room.NONE)
    return max(one, other, key=order.index)
