"""What every tape drive must do: one test per row of the tape reference, sections 4, 5 and 6.

A test module subclasses `TapeDriveContract` and overrides `new_drive`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.testing.tape_bench import (
    BEGINNING,
    BLOCKS,
    END_OF_DATA,
    END_OF_MEDIUM,
    FILEMARK,
    FILEMARKS,
    GUARD_CHECK,
    INCORRECT_LENGTH,
    INVALID_FIELD,
    OVERFLOW,
    OVERHEAD_BYTES,
    OVERWRITE_REFUSED,
    PROGRAMMABLE_WARNING,
    TO_END,
    WRONG_POSITION,
    TapeBench,
    check,
    content,
    good,
)


class TapeDriveContract:
    """The suite."""

    def new_drive(self, folder: Path, **options: Any) -> Any:
        """Return a ready drive with a blank cartridge.

        Options: `capacity_bytes`, `early_warning_bytes`, `programmable_early_warning_bytes`, `is_worm`.
        """
        raise NotImplementedError

    @pytest.fixture
    def bench(self, tmp_path: Path) -> TapeBench:
        """Return a bench with a large blank cartridge."""
        return TapeBench(self.new_drive(tmp_path / "TAPE", capacity_bytes=1 << 30))

    @pytest.fixture
    def small(self, tmp_path: Path) -> TapeBench:
        """Return a bench whose cartridge has 10,000 charged bytes: PEW at 8,000, EW at 9,000."""
        drive = self.new_drive(
            tmp_path / "SMALL",
            capacity_bytes=10_000,
            early_warning_bytes=1000,
            programmable_early_warning_bytes=1000,
        )
        return TapeBench(drive)

    # --- section 4: READ -------------------------------------------------------------------------

    def test_reading_nothing_is_good_and_moves_nothing(self, bench: TapeBench) -> None:
        bench.write(100)
        bench.drive.rewind()
        good(bench.get(0), position=0)

    def test_fixed_with_suppressed_length_is_an_invalid_field(self, bench: TapeBench) -> None:
        bench.set_mode(block_length=100)
        bench.write(100)
        bench.drive.rewind()
        outcome = bench.get_blocks(1, 100, suppress_length=True)
        check(outcome, INVALID_FIELD, position=0)

    def test_a_record_of_the_exact_length_is_good(self, bench: TapeBench) -> None:
        bench.write(100)
        bench.drive.rewind()
        good(bench.get(100), position=1, data=content(0, 100))

    def test_a_shorter_record_is_an_incorrect_length_with_a_positive_difference(
        self, bench: TapeBench
    ) -> None:
        bench.write(100)
        bench.drive.rewind()
        outcome = bench.get(150)
        check(
            outcome,
            INCORRECT_LENGTH,
            position=1,
            information=50,
            data=content(0, 100),
            flags="ILI",
        )
        assert outcome.crc32c == crc32c(content(0, 100))

    def test_a_shorter_record_with_suppressed_length_is_good(self, bench: TapeBench) -> None:
        bench.write(100)
        bench.drive.rewind()
        good(bench.get(150, suppress_length=True), position=1, data=content(0, 100))

    def test_a_longer_record_is_an_incorrect_length_with_a_negative_difference(
        self, bench: TapeBench
    ) -> None:
        bench.write(100)
        bench.drive.rewind()
        outcome = bench.get(60)
        first = content(0, 100)[:60]
        check(outcome, INCORRECT_LENGTH, position=1, information=-40, data=first, flags="ILI")
        assert outcome.crc32c == crc32c(first)

    def test_a_longer_record_with_suppressed_length_is_good_in_variable_mode(
        self, bench: TapeBench
    ) -> None:
        bench.write(100)
        bench.drive.rewind()
        good(bench.get(60, suppress_length=True), position=1, data=content(0, 100)[:60])

    def test_a_longer_record_with_suppressed_length_is_reported_if_there_is_a_block_length(
        self, bench: TapeBench
    ) -> None:
        bench.write(100)
        bench.set_mode(block_length=60)
        bench.drive.rewind()
        outcome = bench.get(60, suppress_length=True)
        first = content(0, 100)[:60]
        check(outcome, INCORRECT_LENGTH, position=1, information=-40, data=first, flags="ILI")

    def test_fixed_blocks_of_the_right_length_are_good(self, bench: TapeBench) -> None:
        bench.write(50, 50, 50)
        bench.set_mode(block_length=50)
        bench.drive.rewind()
        data = b"".join(content(number, 50) for number in range(3))
        good(bench.get_blocks(3, 50), position=3, data=data)

    def test_a_fixed_read_stops_behind_a_record_of_another_length(self, bench: TapeBench) -> None:
        bench.write(50, 50, 60, 50)
        bench.set_mode(block_length=50)
        bench.drive.rewind()
        data = content(0, 50) + content(1, 50)
        outcome = bench.get_blocks(4, 50)
        check(outcome, INCORRECT_LENGTH, position=3, information=2, data=data, flags="ILI")
        assert outcome.crc32c == crc32c(data)

    def test_a_variable_read_at_a_filemark_passes_it(self, bench: TapeBench) -> None:
        bench.write(0, 100)
        bench.drive.rewind()
        check(bench.get(100), FILEMARK, position=1, information=100, flags="FM")

    def test_a_fixed_read_delivers_what_is_before_a_filemark(self, bench: TapeBench) -> None:
        bench.write(50, 50, 0, 50)
        bench.set_mode(block_length=50)
        bench.drive.rewind()
        data = content(0, 50) + content(1, 50)
        check(bench.get_blocks(5, 50), FILEMARK, position=3, information=3, data=data, flags="FM")

    def test_a_variable_read_at_end_of_data_is_a_blank_check(self, bench: TapeBench) -> None:
        bench.write(100)
        check(bench.get(70), END_OF_DATA, position=1, information=70)

    def test_a_fixed_read_delivers_what_is_before_end_of_data(self, bench: TapeBench) -> None:
        bench.write(50)
        bench.set_mode(block_length=50)
        bench.drive.rewind()
        outcome = bench.get_blocks(3, 50)
        check(outcome, END_OF_DATA, position=1, information=2, data=content(0, 50))

    def test_end_of_data_beyond_early_warning_says_end_of_medium(self, small: TapeBench) -> None:
        small.write(9000)
        check(small.get(70), END_OF_DATA, position=1, information=70, flags="EOM")

    def test_reading_across_early_warning_says_nothing(self, small: TapeBench) -> None:
        """REW stays 0."""
        small.write(9000, 100)
        small.drive.rewind()
        good(small.get(9000), position=1)
        good(small.get(100), position=2)

    def test_a_read_at_another_position_reads_nothing(self, bench: TapeBench) -> None:
        bench.write(100, 100)
        check(bench.get(100, expected_position=1), WRONG_POSITION, position=2)

    # --- section 5.1: overwriting ----------------------------------------------------------------

    def test_overwriting_destroys_everything_behind(self, bench: TapeBench) -> None:
        bench.set_mode(is_append_only=False)
        bench.write(100, 0, 100, 0)
        bench.drive.locate(1)
        good(bench.put(b"new"), position=2)
        check(bench.get(100), END_OF_DATA, position=2, information=100)
        bench.drive.rewind()
        good(bench.get(100), position=1, data=content(0, 100))
        good(bench.get(3), position=2, data=b"new")
        good(bench.drive.space(TO_END), position=2)

    def test_a_filemark_over_old_records_destroys_them(self, bench: TapeBench) -> None:
        bench.set_mode(is_append_only=False)
        bench.write(100, 100, 100)
        bench.drive.locate(1)
        good(bench.drive.write_filemarks(1), position=2)
        check(bench.get(100), END_OF_DATA, position=2, information=100)

    def test_erasing_makes_the_position_end_of_data(self, bench: TapeBench) -> None:
        bench.set_mode(is_append_only=False)
        bench.write(100, 0, 100)
        bench.drive.locate(1)
        good(bench.drive.erase(), position=1)
        good(bench.drive.space(TO_END), position=1)
        assert bench.drive.read_position().report.file_number == 0

    # --- section 5.2: early warning --------------------------------------------------------------

    def test_every_record_beyond_early_warning_is_written_and_reported(
        self, small: TapeBench
    ) -> None:
        small.write(9000 - OVERHEAD_BYTES - 1)
        for position in (2, 3, 4):
            outcome = small.put(b"x" * 100)
            check(outcome, END_OF_MEDIUM, position=position, information=0, flags="EOM")
            assert outcome.is_done
        assert small.drive.read_position().report.is_beyond_early_warning
        small.drive.locate(1)
        good(small.get(100), position=2, data=b"x" * 100)

    def test_early_warning_is_reached_to_the_byte(self, small: TapeBench) -> None:
        small.write(8000)  # beyond programmable early warning
        good(small.put(b"x" * (1000 - 2 * OVERHEAD_BYTES - 1)), position=2)
        assert not small.drive.read_position().report.is_beyond_early_warning
        outcome = small.put(b"x")
        check(outcome, END_OF_MEDIUM, position=3, information=0, flags="EOM")

    def test_a_filemark_beyond_early_warning_is_written_and_reported(
        self, small: TapeBench
    ) -> None:
        small.write(9000)
        for immediate in (False, True):
            outcome = small.drive.write_filemarks(1, immediate=immediate)
            assert outcome.is_done
            assert (outcome.sense.key, outcome.sense.asc, outcome.sense.ascq) == END_OF_MEDIUM
        assert small.position == 3

    # --- section 5.3: physical end ---------------------------------------------------------------

    def test_a_record_that_does_not_fit_leaves_nothing_on_the_tape(self, small: TapeBench) -> None:
        small.write(9000)
        outcome = small.put(b"x" * 1000)
        check(outcome, OVERFLOW, position=1, information=1000, flags="EOM")
        assert not outcome.is_done
        check(small.get(1000), END_OF_DATA, position=1, information=1000, flags="EOM")

    def test_the_capacity_is_used_to_the_last_byte(self, small: TapeBench) -> None:
        small.write(9000)
        left = 10_000 - 9000 - OVERHEAD_BYTES
        outcome = small.put(b"x" * (left - OVERHEAD_BYTES + 1))
        check(outcome, OVERFLOW, position=1, information=left - OVERHEAD_BYTES + 1, flags="EOM")
        outcome = small.put(b"x" * (left - OVERHEAD_BYTES))
        check(outcome, END_OF_MEDIUM, position=2, information=0, flags="EOM")
        check(small.drive.write_filemarks(1), OVERFLOW, position=2, information=1, flags="EOM")

    def test_a_smaller_record_and_a_filemark_still_fit(self, small: TapeBench) -> None:
        small.write(9000)
        assert not small.put(b"x" * 1000).is_done
        assert small.put(b"x" * 100).is_done
        assert small.drive.write_filemarks(1).is_done
        assert small.position == 3

    def test_an_overflow_in_fixed_mode_counts_the_blocks_that_are_missing(
        self, small: TapeBench
    ) -> None:
        small.set_mode(block_length=400)
        small.write(9000)
        data = bytes(1200)
        outcome = small.drive.write_blocks(memoryview(data), crc32c=crc32c(data))
        check(outcome, OVERFLOW, position=3, information=1, flags="EOM")

    def test_an_overflow_of_filemarks_counts_those_that_are_missing(self, small: TapeBench) -> None:
        small.write(10_000 - 3 * OVERHEAD_BYTES)
        outcome = small.drive.write_filemarks(5)
        check(outcome, OVERFLOW, position=3, information=3, flags="EOM")

    # --- section 5.4: programmable early warning -------------------------------------------------

    def test_programmable_early_warning_is_reported_once_when_crossing(
        self, small: TapeBench
    ) -> None:
        small.write(8000 - 2 * OVERHEAD_BYTES - 1)
        assert not small.drive.read_position().report.is_beyond_programmable_early_warning
        outcome = small.put(b"x")
        check(outcome, PROGRAMMABLE_WARNING, position=2, information=0, flags="EOM")
        assert outcome.is_done
        good(small.put(b"x"), position=3)
        good(small.drive.write_filemarks(1), position=4)

    def test_the_flag_stays_set_beyond_programmable_early_warning(self, small: TapeBench) -> None:
        small.write(8000, 10)
        report = small.drive.read_position().report
        assert report.is_beyond_programmable_early_warning
        assert report.encode_long()[0] & 0x01
        small.drive.rewind()
        assert not small.drive.read_position().report.is_beyond_programmable_early_warning

    def test_crossing_both_warnings_reports_the_nearer_end(self, small: TapeBench) -> None:
        outcome = small.put(b"x" * 9500)
        check(outcome, END_OF_MEDIUM, position=1, information=0, flags="EOM")

    # --- section 5.5: synchronise at early warning -----------------------------------------------

    def test_the_buffer_is_flushed_at_early_warning(self, small: TapeBench) -> None:
        small.write(100)
        assert small.drive.read_position().report.durable_object == 0
        assert small.put(b"x" * 9000).is_done
        assert small.drive.read_position().report.durable_object == 2

    # --- section 5.6: WRITE FILEMARKS ------------------------------------------------------------

    def test_a_synchronous_filemark_flushes_everything_before_status(
        self, bench: TapeBench
    ) -> None:
        bench.write(100, 100)
        assert bench.drive.read_position().report.durable_object == 0
        good(bench.drive.write_filemarks(1), position=3)
        assert bench.drive.read_position().report.durable_object == 3

    def test_count_zero_is_a_pure_synchronisation(self, bench: TapeBench) -> None:
        bench.write(100)
        good(bench.drive.write_filemarks(0), position=1)
        assert bench.drive.read_position().report.durable_object == 1

    def test_an_immediate_filemark_is_buffered(self, bench: TapeBench) -> None:
        good(bench.drive.write_filemarks(2, immediate=True), position=2)
        assert bench.drive.read_position().report.durable_object == 0

    def test_an_immediate_filemark_needs_a_buffer(self, bench: TapeBench) -> None:
        bench.set_mode(is_buffered=False)
        check(bench.drive.write_filemarks(1, immediate=True), INVALID_FIELD, position=0)

    def test_a_count_of_filemarks_out_of_range_is_an_invalid_field(self, bench: TapeBench) -> None:
        check(bench.drive.write_filemarks(-1), INVALID_FIELD, position=0)
        check(bench.drive.write_filemarks(1 << 23), INVALID_FIELD, position=0)

    def test_a_filemark_at_another_position_is_not_written(self, bench: TapeBench) -> None:
        bench.write(100)
        check(bench.drive.write_filemarks(1, expected_position=0), WRONG_POSITION, position=1)
        check(bench.drive.write_filemarks(0, expected_position=0), WRONG_POSITION, position=1)
        good(bench.drive.space(TO_END), position=1)

    # --- section 5.7: buffered mode --------------------------------------------------------------

    def test_good_in_buffered_mode_means_in_the_buffer(self, bench: TapeBench) -> None:
        bench.write(100, 200)
        report = bench.drive.read_position().report
        assert (report.object_number, report.durable_object) == (2, 0)
        assert report.buffered_objects == 2
        assert report.buffered_bytes == 300 + 2 * OVERHEAD_BYTES

    def test_good_in_unbuffered_mode_means_on_the_medium(self, bench: TapeBench) -> None:
        bench.set_mode(is_buffered=False)
        bench.write(100)
        assert bench.drive.read_position().report.durable_object == 1

    @pytest.mark.parametrize("command", ["read", "space", "rewind", "locate", "set_mode"])
    def test_reads_and_motions_flush_the_buffer(self, bench: TapeBench, command: str) -> None:
        bench.write(100)
        {
            "read": lambda: bench.get(10),
            "space": lambda: bench.drive.space(BLOCKS, -1),
            "rewind": bench.drive.rewind,
            "locate": lambda: bench.drive.locate(0),
            "set_mode": lambda: bench.drive.set_mode(bench.drive.mode),
        }[command]()
        bench.drive.space(TO_END)
        report = bench.drive.read_position().report
        assert report.durable_object == report.object_number == 1

    # --- section 5.8 and the checks of ours ------------------------------------------------------

    def test_a_record_longer_than_the_limit_is_an_invalid_field(self, bench: TapeBench) -> None:
        check(bench.put(bytes(1 << 24)), INVALID_FIELD, position=0)

    def test_the_longest_record_is_written_and_read(self, bench: TapeBench) -> None:
        size = (1 << 24) - 1
        good(bench.put(bytes(size)), position=1)
        bench.drive.rewind()
        good(bench.get(size), position=1, data=bytes(size))

    def test_writing_nothing_is_good_and_writes_nothing(self, bench: TapeBench) -> None:
        good(bench.put(b""), position=0)
        good(bench.drive.space(TO_END), position=0)

    def test_a_record_at_another_position_is_not_written(self, bench: TapeBench) -> None:
        bench.write(100)
        check(bench.put(b"late", expected_position=0), WRONG_POSITION, position=1)
        good(bench.drive.space(TO_END), position=1)
        good(bench.put(b"next", expected_position=1), position=2)

    def test_a_record_with_a_wrong_checksum_is_not_written(self, bench: TapeBench) -> None:
        check(bench.put(b"data", crc32c=crc32c(b"Data")), GUARD_CHECK, position=0)
        good(bench.drive.space(TO_END), position=0)
        good(bench.put(b"data"), position=1)

    def test_append_only_refuses_to_overwrite(self, bench: TapeBench) -> None:
        bench.write(100, 100)
        bench.drive.locate(1)
        check(bench.put(b"x"), OVERWRITE_REFUSED, position=1)
        check(bench.drive.write_filemarks(1), OVERWRITE_REFUSED, position=1)
        check(bench.drive.erase(), OVERWRITE_REFUSED, position=1)
        good(bench.get(100), position=2, data=content(1, 100))

    def test_overwriting_is_allowed_for_exactly_one_position_and_once(
        self, bench: TapeBench
    ) -> None:
        bench.write(100, 100, 100)
        bench.drive.locate(1)
        good(bench.drive.allow_overwrite(1), position=1)
        bench.drive.locate(0)
        check(bench.put(b"x"), OVERWRITE_REFUSED, position=0)
        bench.drive.locate(1)
        good(bench.put(b"x"), position=2)
        bench.drive.locate(1)
        check(bench.put(b"y"), OVERWRITE_REFUSED, position=1)

    def test_overwriting_can_be_allowed_only_where_the_tape_stands(self, bench: TapeBench) -> None:
        bench.write(100, 100)
        check(bench.drive.allow_overwrite(0), INVALID_FIELD, position=2)

    def test_a_permission_to_overwrite_can_be_taken_back(self, bench: TapeBench) -> None:
        bench.write(100)
        bench.drive.rewind()
        good(bench.drive.allow_overwrite(0), position=0)
        good(bench.drive.allow_overwrite(None), position=0)
        check(bench.put(b"x"), OVERWRITE_REFUSED, position=0)

    def test_worm_is_never_overwritten(self, tmp_path: Path) -> None:
        bench = TapeBench(self.new_drive(tmp_path / "W", capacity_bytes=1 << 20, is_worm=True))
        bench.set_mode(is_append_only=False)
        bench.write(100)
        bench.drive.rewind()
        check(bench.drive.allow_overwrite(0), OVERWRITE_REFUSED, position=0)
        check(bench.put(b"x"), OVERWRITE_REFUSED, position=0)
        bench.drive.space(TO_END)
        good(bench.put(b"x"), position=2)

    def test_fixed_blocks_become_records(self, bench: TapeBench) -> None:
        bench.set_mode(block_length=50)
        data = content(0, 150)
        good(bench.drive.write_blocks(memoryview(data), crc32c=crc32c(data)), position=3)
        bench.drive.rewind()
        good(bench.get(50), position=1, data=data[:50])

    def test_fixed_blocks_must_be_whole(self, bench: TapeBench) -> None:
        data = memoryview(bytes(120))
        check(bench.drive.write_blocks(data, crc32c=crc32c(data)), INVALID_FIELD, position=0)
        bench.set_mode(block_length=50)
        check(bench.drive.write_blocks(data, crc32c=crc32c(data)), INVALID_FIELD, position=0)

    # --- section 6: SPACE and LOCATE -------------------------------------------------------------

    def test_spacing_forward_over_blocks(self, bench: TapeBench) -> None:
        bench.write(10, 10, 10)
        bench.drive.rewind()
        good(bench.drive.space(BLOCKS, 2), position=2)

    def test_spacing_forward_stops_behind_a_filemark(self, bench: TapeBench) -> None:
        bench.write(10, 10, 0, 10, 10)
        bench.drive.rewind()
        check(bench.drive.space(BLOCKS, 5), FILEMARK, position=3, information=3, flags="FM")

    def test_spacing_backward_stops_before_a_filemark(self, bench: TapeBench) -> None:
        bench.write(10, 10, 0, 10, 10)
        check(bench.drive.space(BLOCKS, -5), FILEMARK, position=2, information=3, flags="FM")

    def test_spacing_backward_ends_at_the_beginning(self, bench: TapeBench) -> None:
        bench.write(10, 10)
        check(bench.drive.space(BLOCKS, -5), BEGINNING, position=0, information=3, flags="EOM")

    def test_spacing_forward_ends_at_end_of_data(self, bench: TapeBench) -> None:
        bench.write(10, 10)
        bench.drive.rewind()
        check(bench.drive.space(BLOCKS, 5), END_OF_DATA, position=2, information=3)

    def test_spacing_over_filemarks_ends_behind_the_last(self, bench: TapeBench) -> None:
        bench.write(10, 0, 10, 0, 10, 0)
        bench.drive.rewind()
        good(bench.drive.space(FILEMARKS, 2), position=4)

    def test_spacing_backward_over_filemarks_ends_before_the_last(self, bench: TapeBench) -> None:
        bench.write(10, 0, 10, 0, 10, 0)
        good(bench.drive.space(FILEMARKS, -2), position=3)

    def test_spacing_over_filemarks_ends_at_end_of_data(self, bench: TapeBench) -> None:
        bench.write(10, 0, 10)
        bench.drive.rewind()
        check(bench.drive.space(FILEMARKS, 3), END_OF_DATA, position=3, information=2)

    def test_spacing_backward_over_filemarks_ends_at_the_beginning(self, bench: TapeBench) -> None:
        bench.write(10, 0, 10)
        outcome = bench.drive.space(FILEMARKS, -3)
        check(outcome, BEGINNING, position=0, information=2, flags="EOM")

    def test_spacing_to_end_of_data(self, bench: TapeBench) -> None:
        bench.write(10, 0, 10)
        bench.drive.rewind()
        good(bench.drive.space(TO_END), position=3)

    def test_spacing_over_nothing_is_no_operation(self, bench: TapeBench) -> None:
        bench.write(10, 0, 10)
        bench.drive.locate(1)
        good(bench.drive.space(BLOCKS, 0), position=1)
        good(bench.drive.space(FILEMARKS, 0), position=1)

    def test_an_unknown_space_code_is_an_invalid_field(self, bench: TapeBench) -> None:
        check(bench.drive.space(2, 1), INVALID_FIELD, position=0)

    def test_locating_an_object(self, bench: TapeBench) -> None:
        bench.write(10, 0, 20)
        good(bench.drive.locate(2), position=2)
        good(bench.get(20), position=3, data=content(2, 20))

    def test_locating_past_end_of_data(self, bench: TapeBench) -> None:
        bench.write(10, 0)
        bench.drive.rewind()
        check(bench.drive.locate(3), END_OF_DATA, position=2)
        good(bench.drive.locate(2), position=2)

    def test_locating_in_another_partition_is_an_invalid_field(self, bench: TapeBench) -> None:
        bench.write(10)
        good(bench.drive.locate(0, partition=0), position=0)
        check(bench.drive.locate(1, partition=1), INVALID_FIELD, position=0)

    def test_locating_a_file(self, bench: TapeBench) -> None:
        bench.write(10, 0, 20, 0)
        good(bench.drive.locate_file(0), position=0)
        good(bench.drive.locate_file(1), position=2)
        good(bench.drive.locate_file(2), position=4)
        check(bench.drive.locate_file(3), END_OF_DATA, position=4)
        assert bench.drive.read_position().report.file_number == 2

    # --- section 3 -------------------------------------------------------------------------------

    def test_the_block_limits_are_one_byte_to_16_mib(self, bench: TapeBench) -> None:
        assert bench.drive.read_block_limits() == bytes.fromhex("00ffffff0001")

    def test_the_position_has_object_and_file_number(self, bench: TapeBench) -> None:
        bench.write(10, 0, 20)
        bench.drive.flush()
        report = bench.drive.read_position().report
        assert report.encode_long() == struct.pack(">B3xIQQ8x", 0, 0, 3, 1)
        bench.drive.rewind()
        assert bench.drive.read_position().report.encode_long()[0] == 0x80
