"""Patterns: what they mean, and that no name can make them slow."""

from __future__ import annotations

import pytest

from backplane.errors import UsageError
from backplane.file_map.pattern import PATTERN_CHARACTERS_MAX, AnyOf, Pattern, spelled

MATCHES = [
    ("*.iso", "a.iso b/a.iso b/c/.iso", "a.isox iso a.iso/b"),
    ("home", "home a/home", "homes home/a"),
    ("/home", "home", "a/home"),
    ("home/a", "home/a", "x/home/a home/a/b"),
    ("home/*", "home/a home/.b", "home home/a/b"),
    ("home/**", "home/a home/a/b/c", "home homes/a x/home/a"),
    ("**", "a a/b/c", ""),
    ("/**", "a a/b", ""),
    ("**/a", "a b/a b/c/a", "ab b/ab a/b"),
    ("a/**/b", "a/b a/x/b a/x/y/b", "ab a/xb b x/a/b"),
    ("a/**/**/b", "a/b a/x/y/b", "ab"),
    ("a/**/b/**/c", "a/b/c a/x/b/y/c a/b/b/c", "a/c a/b a/x/c"),
    ("**/b/*/d/**", "b/c/d/e a/b/c/d/e/f b/x/b/c/d/e", "b/c/d b/d/e"),
    ("a?c", "abc a-c aäc", "ac abbc a/c"),
    ("a*c", "ac abc abcc", "acb a/c"),
    ("a*b*c*d", "abcd axbxcxd abcbcd abccdd", "abdc abcdx"),
    ("*a*", "a bab", "b"),
    ("a**c", "ac abc", "a/c"),
    ("[abc]x", "ax cx z/bx", "dx abx"),
    ("[a-c]x", "ax bx", "dx -x"),
    ("[!a-c]x", "dx äx", "ax /x"),
    ("[^a]x", "bx", "ax"),
    ("[]x]", "] x", "a"),
    ("[!]x]", "a", "] x"),
    ("[a-]", "a -", "b"),
    ("[ä-ü]", "ö", "o"),
    ("[a", "[a", "a"),
    ("[]", "[]", "["),
    (r"[\]]", "]", "\\"),
    (r"\*", "*", "a"),
    (r"\[a]", "[a]", "a"),
    ("a.b+c", "a.b+c", "aab+c a.bbc"),
    ("a b", "", "a b/c"),
]


@pytest.mark.parametrize(("text", "yes", "no"), MATCHES, ids=[text for text, _, _ in MATCHES])
def test_a_pattern_means_what_it_says(text: str, yes: str, no: str) -> None:
    pattern = Pattern(text)
    assert [path for path in yes.split() if not pattern.matches(path.encode())] == []
    assert [path for path in no.split() if pattern.matches(path.encode())] == []


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("*.iso", "a.iso a.iso/x b/a.iso/x/y", "a.isox a.isox/iso"),
        ("home", "home home/a x/home/a", "homes homes/a"),
        ("/home", "home home/a", "x/home x/home/a"),
        ("home/**", "home/a home/a/b", "home x/home/a"),
        ("a/**/b", "a/b/c a/x/b/c", "a/x/c"),
        ("var/*/cache", "var/a/cache/x", "var/a/b/cache var/cache/x"),
        ("**", "a a/b", ""),
    ],
)
def test_a_picked_directory_picks_all_that_is_in_it(text: str, yes: str, no: str) -> None:
    any_of = AnyOf([Pattern("nothing/else"), Pattern(text)])
    assert [path for path in yes.split() if not any_of.picks(path.encode())] == []
    assert [path for path in no.split() if any_of.picks(path.encode())] == []


def test_a_pattern_may_mean_directories_only() -> None:
    pattern = Pattern("build/")
    assert pattern.matches(b"a/build", is_directory=True)
    assert not pattern.matches(b"a/build")
    any_of = AnyOf([pattern])
    assert any_of.picks(b"a/build", is_directory=True)
    assert any_of.picks(b"a/build/x")
    assert not any_of.picks(b"a/build")


def test_a_directory_is_meant_by_any_other_pattern_too() -> None:
    for text in ("home", "/home", "h*", "**"):
        assert Pattern(text).matches(b"home", is_directory=True)
        assert AnyOf([Pattern(text)]).picks(b"home", is_directory=True)
    for text in ("home/**", "home/*", "home/?", "*/*"):
        assert not Pattern(text).matches(b"home", is_directory=True)


def test_the_root_is_meant_by_nothing() -> None:
    assert not Pattern("**").matches(b"", is_directory=True)
    assert not AnyOf([Pattern("*")]).picks(b"")


def test_no_patterns_pick_nothing() -> None:
    assert not AnyOf([]).picks(b"a")


def test_bytes_that_are_no_text_are_characters() -> None:
    name = b"caf\xe9"
    assert Pattern("caf?").matches(name)
    assert Pattern("caf[!x]").matches(name)
    assert Pattern(name.decode("utf-8", "surrogateescape")).matches(name)
    assert not Pattern("caf\xe9").matches(name)
    assert Pattern("a\nb").matches(b"a\nb")


@pytest.mark.parametrize(
    ("text", "under"),
    [
        ("home/ä/*.iso", "home/ä".encode()),
        ("/etc/hosts", b"etc/hosts"),
        ("/etc/", b"etc"),
        ("etc/**", b"etc"),
        ("a/b[c]/d", b"a"),
        (r"a/\*", b"a"),
        ("caf\udce9/x", b"caf\xe9/x"),
        ("*.iso", b""),
        ("hosts", b""),
        ("**/a", b""),
    ],
)
def test_a_pattern_says_below_what_it_looks(text: str, under: bytes) -> None:
    assert Pattern(text).under == under


@pytest.mark.parametrize(
    "text", ["", "/", "//", ".", "./a", "a/../b", "a\0", "a\\", "[z-a]", "a/.."]
)
def test_a_pattern_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Pattern(text)


def test_a_pattern_that_is_too_long_is_refused() -> None:
    Pattern("a" * PATTERN_CHARACTERS_MAX)
    with pytest.raises(UsageError, match="characters"):
        Pattern("a" * (PATTERN_CHARACTERS_MAX + 1))


@pytest.mark.parametrize(
    "text", ["*a" * 60 + "b", "**/a/" * 40 + "b", "[a-z]*" * 40 + "0", "?*" * 50 + "b"]
)
@pytest.mark.parametrize("name", [b"a" * 60_000, b"a/" * 30_000 + b"c", b"a/b/" * 15_000])
def test_no_name_makes_a_pattern_go_back_and_back(text: str, name: bytes) -> None:
    """Each star tries each place once.  With ordinary backtracking this would not end today."""
    pattern = Pattern(text)
    pattern.matches(name)
    AnyOf([pattern, pattern]).picks(name)


# --- names that are no text ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (r"bad\xff*", b"bad\xff1"),
        (r"/home/\xfe\xff", b"home/\xfe\xff"),
        (r"new\x0aline", b"new\nline"),
        (r"\x2a", b"*"),
        (r"\u0085\U0001f600", "\x85\U0001f600".encode()),
        (r"[\xfe\xff]", b"\xff"),
        (r"[\x5d]", b"]"),
        (r"a\\xff", rb"a\xff"),
        (r"\xg0", b"xg0"),
    ],
)
def test_names_can_be_written_as_they_are_shown(text: str, path: bytes) -> None:
    assert Pattern(text).matches(path)
    assert not Pattern(text).matches(b"?" + path)


@pytest.mark.parametrize("text", [r"\x00", r"a\x2fb", r"\Uffffffff"])
def test_a_number_that_no_name_has_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no character of a name"):
        Pattern(text)


def test_what_a_command_line_has_is_spelled_so_that_it_can_be_sent() -> None:
    typed = b"b\xc3\xa4d\xff\\*".decode("utf-8", "surrogateescape")
    assert spelled(typed) == r"bäd\xff\*"
    spelled(typed).encode()
    assert Pattern(spelled(typed)).matches("bäd".encode() + b"\xff*")
