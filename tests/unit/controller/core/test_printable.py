from __future__ import annotations

from controller.core.printable import printable, printable_name, shown


def test_a_path_can_be_told_to_people() -> None:
    assert shown(b"") == "/"
    assert shown("ä/b".encode()) == "ä/b"
    assert shown(b"a\xff\n\x1b[2J") == "a\\xff\\x0a\\x1b[2J"
    assert shown(rb"a\xff") != shown(b"a\xff"), "two paths must not be told alike"
    assert len(shown(b"x" * 5000)) == 200


def test_what_a_terminal_would_obey_is_told_in_numbers() -> None:
    assert printable("a\x1b[2J\u202eb") == "a\\x1b[2J\\u202eb"
    assert printable("\U000e0001") == "\\U000e0001"
    assert printable_name(b"a\\b") == "a\\\\b"
