"""What rows of FAT and exFAT have in common."""

from __future__ import annotations

from storage_node.mapping.fat_rows import PROBLEMS_MAX, Problems, another_name, root_row, shown


def test_reasons_are_told_once_and_not_without_end() -> None:
    problems = Problems()
    for number in range(2 * PROBLEMS_MAX):
        problems.add(f"reason {number}")
        problems.add("reason 0")
    assert len(problems) == PROBLEMS_MAX + 1
    assert problems[-1] == "and more"
    assert problems.count("reason 0") == 1


def test_a_name_that_is_there_twice_gets_another() -> None:
    names = {b"a", b"a?2"}
    assert another_name(b"a", names) == b"a?3"


def test_paths_are_shown_as_people_write_them() -> None:
    assert shown(b"") == "/"
    assert shown("ä/b".encode()) == "/ä/b"
    assert shown(b"\xed\xa0\x80") == "/\\xed\\xa0\\x80"


def test_the_root_has_no_name() -> None:
    assert root_row(1, 512, (), "").path == b""
