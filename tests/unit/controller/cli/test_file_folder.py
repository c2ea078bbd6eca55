"""Files made from rows: as they were, whatever the rows say inside of the folder, and never outside of it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import BackupError, MediumError, RefusedError
from backplane.file_map.content import JBD2_MAGIC
from backplane.file_map.model import (
    NO_TIME,
    ExtentFlag,
    FileExtent,
    FileRow,
    FileSystem,
    Identity,
    Kind,
)
from controller.cli import file_folder
from controller.cli.file_folder import FileFolder

VOLUME = bytes(range(1, 256)) * 1024
PARTS = ("p1", "p2")
IS_ROOT = os.geteuid() == 0
ME, MY_GROUP = os.geteuid(), os.getegid()


def read(first: int, count: int) -> Generator[bytes, None, None]:
    """Read the volume in odd pieces."""
    for at in range(first, first + count, 1000):
        yield VOLUME[at : min(at + 1000, first + count)]


def row(path: bytes | str, kind: Kind = Kind.FILE, **fields: Any) -> FileRow:
    name = path if isinstance(path, bytes) else path.encode()
    extents = fields.pop("extents", ())
    facts: dict[str, Any] = {
        "path": name,
        "kind": kind,
        "size": sum(each.byte_count for each in extents),
        "mode": 0o640,
        "uid": ME,
        "gid": MY_GROUP,
        "mtime_ns": 1_700_000_000_123_456_789,
        "atime_ns": 1_600_000_000_000_000_001,
        "ctime_ns": 0,
        "birth_ns": 0,
        "links": 1,
        "identity": Identity(0, 7, 0),
        "extents": extents,
    }
    return FileRow(**(facts | fields))


def plain(first: int, count: int, at: int = 0, flags: int = 0) -> FileExtent:
    return FileExtent(at, first, count, flags)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def folder(out: Path) -> Iterator[FileFolder]:
    made = FileFolder(out)
    made.read_from(read)
    yield made
    made.close()


def fill(folder: FileFolder, *rows: FileRow) -> list[str]:
    """Make rows and return the reasons of those that could not be made."""
    for each in rows:
        folder.add(each)
    folder.finish()
    return [each["reason"] for each in folder.listed]


def leftovers(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.name.endswith(".partial")]


# --- contents and attributes ---------------------------------------------------------------------


def test_a_file_has_its_bytes_its_mode_and_its_times(folder: FileFolder, out: Path) -> None:
    assert fill(folder, row("a/b", extents=(plain(700, 3000),))) == []
    found = out / "a" / "b"
    assert found.read_bytes() == VOLUME[700:3700]
    told = found.stat()
    assert stat.S_IMODE(told.st_mode) == 0o640
    assert told.st_mtime_ns == 1_700_000_000_123_456_789
    assert (folder.files, folder.file_bytes, folder.attributes_lost) == (1, 3000, 0)


def test_holes_stay_holes_and_unwritten_space_reads_as_zeros(folder: FileFolder, out: Path) -> None:
    space = plain(0, 4096, at=4096, flags=ExtentFlag.UNWRITTEN)
    size = 64 * 1024 * 1024
    fill(folder, row("s", extents=(plain(512, 4096), space), size=size))
    found = out / "s"
    assert found.stat().st_size == size
    assert found.stat().st_blocks * 512 < 1024 * 1024
    with found.open("rb") as file:
        assert file.read(4096) == VOLUME[512:4608]
        assert not any(file.read(8192))


def test_a_last_extent_beyond_the_end_is_cut(folder: FileFolder, out: Path) -> None:
    fill(folder, row("f", extents=(plain(0, 4096),), size=100), row("empty"))
    assert (out / "f").read_bytes() == VOLUME[:100]
    assert (out / "empty").read_bytes() == b""


def test_compressed_units_are_opened_and_parts_of_them_used(out: Path) -> None:
    raw = bytes(range(256)) * 32
    unit = zlib.compress(raw)
    stored = VOLUME[:4096] + unit + VOLUME
    extents = [
        FileExtent(at, 4096, 1000, int(ExtentFlag.COMPRESSED), len(unit), len(raw), offset, "zlib")
        for at, offset in ((0, 300), (1000, 5000))
    ]
    folder = FileFolder(out)
    folder.read_from(lambda first, count: iter_of(stored[first : first + count]))
    assert fill(folder, row("z", extents=tuple(extents))) == []
    folder.close()
    assert (out / "z").read_bytes() == raw[300:1300] + raw[5000:6000]


def iter_of(data: bytes) -> Generator[bytes, None, None]:
    yield data


def test_a_compressed_unit_that_is_damaged_costs_its_file_only(
    folder: FileFolder, out: Path
) -> None:
    unit = FileExtent(0, 0, 100, int(ExtentFlag.COMPRESSED), 512, 4096, 0, "zlib")
    reasons = fill(folder, row("bad", extents=(unit,)), row("good", extents=(plain(0, 9),)))
    assert len(reasons) == 1
    assert [path.name for path in out.iterdir()] == ["good"]


def test_what_the_journal_has_escaped_gets_its_magic_back(folder: FileFolder, out: Path) -> None:
    flags = ExtentFlag.JOURNAL | ExtentFlag.ESCAPED
    fill(
        folder,
        row("j", extents=(plain(512, 4096, flags=flags),)),
        row("short", extents=(plain(512, 4096, flags=flags),), size=3),
    )
    assert (out / "j").read_bytes() == JBD2_MAGIC + VOLUME[516:4608]
    assert (out / "short").read_bytes() == JBD2_MAGIC[:3]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"extents": (plain(0, 9, flags=ExtentFlag.ENCRYPTED),)}, "it is encrypted"),
        ({"error": "torn"}, "its map is not to be trusted: torn"),
        ({"extents": (plain(0, 9), plain(0, 9, at=5))}, "its extents overlap"),
    ],
)
def test_what_cannot_be_a_file_is_listed(
    folder: FileFolder, out: Path, fields: dict[str, Any], words: str
) -> None:
    assert words in fill(folder, row("x/f", **fields))[0]
    assert folder.listed[0]["path"] == "x/f"
    assert not list(out.rglob("f"))


def test_names_of_one_file_are_one_file_again(folder: FileFolder, out: Path) -> None:
    one = row("a/one", extents=(plain(0, 10),), links=3)
    assert fill(folder, one, one._replace(path=b"b/two"), one._replace(path=b"three")) == []
    assert len({path.stat().st_ino for path in (out / "a/one", out / "b/two", out / "three")}) == 1
    assert folder.files == 3


def test_files_with_the_same_numbers_are_not_one_file(out: Path) -> None:
    """Two partitions that were made alike; and a map that says so of files of one file system."""
    systems = [FileSystem("ext4", prefix, "", "", 1024, 1 << 20, "clean", "") for prefix in PARTS]
    folder = FileFolder(out, systems)
    folder.read_from(read)
    first = row("p1/a", extents=(plain(0, 10),), links=2)
    empty = row("p1/none", links=2, identity=Identity(0, 8, 0))
    other = (plain(100, 10),)
    assert not fill(
        folder,
        *(first, first._replace(path=b"p1/b"), first._replace(path=b"p1/c", extents=other)),
        *(first._replace(path=b"p2/a", extents=other), empty, empty._replace(path=b"p2/none")),
    )
    folder.close()
    made = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    content = {name: path.read_bytes() for name, path in made.items()}
    a, c = VOLUME[:10], VOLUME[100:110]
    texts = {"p1/a": a, "p1/b": a, "p1/c": c, "p2/a": c, "p1/none": b"", "p2/none": b""}
    assert content == texts
    assert made["p1/a"].samefile(made["p1/b"])
    assert not made["p1/none"].samefile(made["p2/none"])


def test_links_of_a_file_that_could_not_be_made_are_tried_for_themselves(
    folder: FileFolder, out: Path
) -> None:
    """Also a loop of names that are all said to be each other: none of them is there, each is listed."""
    one = row("a", error="torn", links=2)
    assert len(fill(folder, one, one._replace(path=b"b"))) == 2
    assert not list(out.iterdir())


def test_folders_have_their_attributes_and_not_those_of_being_filled(
    folder: FileFolder, out: Path
) -> None:
    deep = row("d/e", Kind.DIRECTORY, mode=0o500, mtime_ns=5_000_000_000)
    top = row("d", Kind.DIRECTORY, mode=0o750, mtime_ns=7_000_000_000)
    fill(folder, row("", Kind.DIRECTORY), top, deep, row("d/e/f", extents=(plain(0, 5),)))
    assert stat.S_IMODE((out / "d/e").stat().st_mode) == 0o500
    assert (out / "d/e").stat().st_mtime_ns == 5_000_000_000
    assert (out / "d").stat().st_mtime_ns == 7_000_000_000
    (out / "d/e").chmod(0o700)


def test_symbolic_links_pipes_and_sockets_are_made(folder: FileFolder, out: Path) -> None:
    fill(
        folder,
        row("l", Kind.SYMLINK, target=b"../../etc/passwd"),
        row("p", Kind.FIFO, mode=0o622),
        row("s", Kind.SOCKET),
    )
    assert os.readlink(out / "l") == "../../etc/passwd"  # noqa: PTH115 - the text, not a path
    assert stat.S_ISFIFO((out / "p").stat().st_mode)
    assert stat.S_IMODE((out / "p").stat().st_mode) == 0o622, "whatever the umask is"
    assert stat.S_ISSOCK((out / "s").stat().st_mode)
    assert folder.failed == 0


def test_only_root_makes_devices(folder: FileFolder, out: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(folder, "_is_root", False)
    device = row("null", Kind.CHARACTER, device=1 << 32 | 3)
    assert fill(folder, device) == ["only root makes devices"]


@pytest.mark.skipif(not IS_ROOT, reason="only root gives files away")
def test_root_gives_owners_back_and_bits_that_belong_to_them(folder: FileFolder, out: Path) -> None:
    fill(
        folder,
        row("f", extents=(plain(0, 5),), uid=1234, gid=5678, mode=0o6755),
        row("l", Kind.SYMLINK, target=b"f", uid=1234, gid=5678),
    )
    told = (out / "f").stat()
    assert (told.st_uid, told.st_gid, stat.S_IMODE(told.st_mode)) == (1234, 5678, 0o6755)
    assert (out / "l").lstat().st_uid == 1234


def refuse_owners(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EPERM, "no")


def test_an_owner_that_cannot_be_given_costs_his_bits_and_is_counted(
    folder: FileFolder, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that was root's must not become ours with the right to be run as us by anybody."""
    monkeypatch.setattr(os, "fchown", refuse_owners)
    reasons = fill(folder, row("f", uid=ME + 1, gid=MY_GROUP + 1, mode=0o6755))
    assert reasons == []
    assert stat.S_IMODE((out / "f").stat().st_mode) == 0o755
    assert folder.attributes_lost == 1


def test_extended_attributes_come_back_or_are_counted(folder: FileFolder, out: Path) -> None:
    named = ((b"user.a", b"\0\1"), (b"nonsense", b"x"), (b"user.with\0zero", b""))
    fill(folder, row("f", xattrs=named), row("l", Kind.SYMLINK, target=b"f", xattrs=named[:1]))
    try:
        os.setxattr(out / "f", "user.probe", b"")
    except OSError:
        pytest.skip("no extended attributes here")
    assert os.getxattr(out / "f", "user.a") == b"\0\1"
    assert folder.attributes_lost == 3


def test_times_that_are_not_kept_or_cannot_be_are_no_failure(folder: FileFolder, out: Path) -> None:
    fill(
        folder,
        row("none", mtime_ns=NO_TIME, atime_ns=NO_TIME),
        row("far", mtime_ns=1 << 200),
        row("owner", uid=1 << 70),
    )
    assert (out / "none").stat().st_mtime_ns == 0
    assert folder.failed == 0
    assert folder.attributes_lost == 2


# --- hostile maps --------------------------------------------------------------------------------

OUTSIDE: list[bytes] = [
    b"/etc/x",
    b"..",
    b"../x",
    b"a/../../x",
    b"a/..",
    b"./x",
    b"a//x",
    b"a/",
    b"zero\0byte",
    b"/".join([b"d"] * 1025),
]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("kind", [Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO])
def test_no_path_leads_out_of_the_folder(
    folder: FileFolder, out: Path, path: bytes, kind: Kind
) -> None:
    before = sorted(out.parent.rglob("*"))
    assert fill(folder, row(path, kind, target=b"x")) == ["there cannot be such a path here"]
    assert sorted(out.parent.rglob("*")) == before


def test_a_link_is_not_followed_by_what_is_said_to_lie_below_it(
    folder: FileFolder, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    target = os.fsencode(tmp_path / "outside")
    link = row("l", Kind.SYMLINK, target=target)
    reasons = fill(folder, link, row("l/x", extents=(plain(0, 5),)), row("l/d", Kind.DIRECTORY))
    assert len(reasons) == 1, "the link: its name is a folder by then"
    assert not list((tmp_path / "outside").iterdir())
    assert (out / "l" / "x").read_bytes() == VOLUME[:5]


def test_a_file_below_a_file_and_a_name_twice_are_listed(folder: FileFolder, out: Path) -> None:
    reasons = fill(
        folder,
        row("f", extents=(plain(0, 5),)),
        row("f/below", extents=(plain(9, 5),)),
        row("f", extents=(plain(20, 5),)),
        row("f", Kind.DIRECTORY),
        row("f", Kind.SYMLINK, target=b"x"),
        row("f", Kind.FIFO),
    )
    assert len(reasons) == 5
    assert (out / "f").read_bytes() == VOLUME[:5]
    assert leftovers(out) == []


@pytest.mark.parametrize(
    "odd",
    [
        row("l", Kind.SYMLINK, target=b"a\0b"),
        row("l", Kind.SYMLINK, target=b""),
        row("f", size=1 << 70),
        row(b"n" * 300, extents=(plain(0, 5),)),
        row("o", Kind.OTHER),
    ],
)
def test_what_no_system_call_takes_is_listed_and_the_rest_goes_on(
    folder: FileFolder, out: Path, odd: FileRow
) -> None:
    assert len(fill(folder, odd, row("good", extents=(plain(0, 5),)))) == 1
    assert (out / "good").exists()
    assert leftovers(out) == []


def test_a_name_that_cannot_be_printed_is_told_so_that_it_can(folder: FileFolder) -> None:
    fill(folder, row(b"a\x1b[2J", error="torn"))
    assert folder.listed[0]["path"] == "a\\x1b[2J"


def test_the_list_has_an_end(folder: FileFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_folder, "LISTED_MAX", 2)
    fill(folder, *(row(f"{n}", error="torn") for n in range(5)))
    assert (folder.failed, len(folder.listed)) == (5, 2)


# --- the folder itself ---------------------------------------------------------------------------


def test_the_folder_is_nobody_elses_while_it_is_filled_and_then_as_it_was(out: Path) -> None:
    out.mkdir()
    out.chmod(0o755)
    folder = FileFolder(out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    folder.close()
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


def occupied(out: Path) -> None:
    out.mkdir()
    (out / "there").touch()


def a_link(out: Path) -> None:
    (out.parent / "other").mkdir()
    out.symlink_to("other")


@pytest.mark.parametrize(
    ("make", "words"),
    [(occupied, "is not empty"), (a_link, "cannot make files"), (Path.touch, "cannot make files")],
)
def test_only_a_new_or_empty_folder_is_filled(
    out: Path, make: Callable[[Path], None], words: str
) -> None:
    make(out)
    mode = out.lstat().st_mode
    with pytest.raises(RefusedError, match=words):
        FileFolder(out)
    assert out.lstat().st_mode == mode


# --- a target that fails -------------------------------------------------------------------------


class Reader:
    """A reader that knows whether what it was asked for was used up or closed."""

    def __init__(self) -> None:
        self.is_open = False

    def __call__(self, first: int, count: int) -> Generator[bytes, None, None]:
        assert not self.is_open, "the one before was neither used up nor closed"
        self.is_open = True
        try:
            yield from read(first, count)
        finally:
            self.is_open = False


def test_what_was_read_for_a_file_that_cannot_be_written_is_not_the_next_files(
    folder: FileFolder, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader()
    folder.read_from(reader)

    def fail(*_: Any) -> int:
        raise OSError(errno.EFBIG, "File too large")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        folder.add(row("large", extents=(plain(0, 9000),)))
    assert not reader.is_open
    assert fill(folder, row("small", extents=(plain(9000, 4000),))) == ["File too large"]
    assert (out / "small").read_bytes() == VOLUME[9000:13000]


def test_a_file_that_grows_too_large_is_listed(out: Path) -> None:
    folder = FileFolder(out)
    folder.read_from(read)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        reasons = fill(
            folder,
            row("large", extents=(plain(0, 9000),)),
            row("small", extents=(plain(9000, 4000),)),
        )
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    folder.close()
    assert reasons == ["File too large"]
    assert [path.name for path in out.iterdir()] == ["small"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_target_that_gives_up_ends_everything_and_leaves_no_half_a_file(
    folder: FileFolder, out: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder.add(row("whole", extents=(plain(0, 5),)))

    def fail(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(BackupError, match=f"cannot write next: {os.strerror(code)}"):
        folder.add(row("next", extents=(plain(0, 5),)))
    assert [path.name for path in out.iterdir()] == ["whole"]


def test_bytes_that_cannot_be_read_cost_their_file_only(folder: FileFolder, out: Path) -> None:
    def fail(first: int, count: int) -> Generator[bytes, None, None]:
        yield from read(first, min(count, 1000))
        if count > 1000:
            raise MediumError("LBA 7 cannot be read")

    folder.read_from(fail)
    reasons = fill(
        folder, row("bad", extents=(plain(0, 4000),)), row("good", extents=(plain(0, 500),))
    )
    assert reasons == ["LBA 7 cannot be read"]
    assert [path.name for path in out.iterdir()] == ["good"]


def test_whatever_interrupts_leaves_no_half_a_file(folder: FileFolder, out: Path) -> None:
    def interrupt(_first: int, _count: int) -> Generator[bytes, None, None]:
        yield b"half"
        raise KeyboardInterrupt

    folder.read_from(interrupt)
    with pytest.raises(KeyboardInterrupt):
        folder.add(row("f", extents=(plain(0, 8),)))
    assert not list(out.iterdir())


def test_a_target_without_hard_links_gets_its_files_by_renaming(
    folder: FileFolder, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    one = row("f", extents=(plain(0, 5),), links=2)
    reasons = fill(folder, one, one._replace(path=b"g"), row("f", extents=(plain(9, 5),)))
    assert len(reasons) == 2, "the second name, and the second file of the first"
    assert (out / "f").read_bytes() == VOLUME[:5]
    assert leftovers(out) == []


def test_a_new_folder_into_which_nothing_came_goes_again(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("new", "old", "filled"):
        folder = FileFolder(tmp_path / name)
        if name == "filled":
            folder.add(row("d", Kind.DIRECTORY))
        folder.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["filled", "old"]
