"""ext2, ext3 and ext4: the reader.

    superblock --> groups --> journal inode --> replay --> overlay          only if the journal is not empty
    superblock --> groups --> inodes, bitmaps                               through the overlay, if there is one
    root --> entries --> inodes --> rows, and directories to visit          each directory once, with a stack

What no name leads to is looked for at the end, with the bitmaps: an inode in use without a name is something lost.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import partial
from typing import Final

from backplane.file_map.model import PATH_BYTES_MAX, ByteRun, FileRow, FileSystem, Kind
from storage_node.mapping.ext_bitmaps import Bitmaps, set_bits
from storage_node.mapping.ext_blocks import BlockMaps
from storage_node.mapping.ext_directory import (
    ENTRY_KINDS,
    Directories,
    Directory,
    Entry,
    mended_name,
    shown_name,
)
from storage_node.mapping.ext_features import HAS_JOURNAL, RECOVER
from storage_node.mapping.ext_groups import Groups
from storage_node.mapping.ext_inode import (
    ATTRIBUTE_VALUE,
    DIRECTORY_MODE,
    ENCRYPTED,
    KINDS,
    Inode,
    parse_inode,
)
from storage_node.mapping.ext_inodes import InodeTable
from storage_node.mapping.ext_journal import JournalFile, Replay
from storage_node.mapping.ext_overlay import Overlay
from storage_node.mapping.ext_rows import Rows, error_row, inode_defect
from storage_node.mapping.ext_superblock import (
    MAGIC,
    ROOT_INODE,
    SUPERBLOCK_AT,
    SUPERBLOCK_BYTES,
    Superblock,
    read_superblock,
)
from storage_node.mapping.reader import DamagedError, Source, UnsupportedError

RUNS_KEPT_MAX: Final = 1024 * 1024
"""Allocated runs that are remembered, 16 bytes each; more of them are read again."""
LINKED_EXTENTS_MAX: Final = 64 * 1024
"""Rows of files with several names are remembered, until they have so many extents."""
BAD_NAMES_MAX: Final = 10_000
"""Directories whose names are impossible, and which are not yet visited."""
_IMPOSSIBLE_NAMES: Final = (b"", b".", b"..")


def recognise(source: Source) -> bool:
    """Say whether there is a superblock of ext.

    Its magic has only 16 bits, so one of two numbers that are small in every file system must be small as well.
    """
    if source.size_bytes < SUPERBLOCK_AT + SUPERBLOCK_BYTES:
        return False
    raw = source.read(SUPERBLOCK_AT, SUPERBLOCK_BYTES)
    block_shift, revision = raw[24:28], raw[76:80]
    is_plausible = block_shift[1:] == bytes(3) or revision[1:] == bytes(3)
    return int.from_bytes(raw[56:58], "little") == MAGIC and is_plausible


class ExtReader:
    """A file system of the family ext."""

    def __init__(self, source: Source) -> None:
        self.problems: list[str] = []
        superblock = read_superblock(source)
        self._state = "clean"
        overlay = None
        if superblock.incompatible & RECOVER:
            overlay = self._replay(superblock, source)
            if overlay is not None:
                source = overlay
                superblock = read_superblock(source)
        elif not superblock.was_unmounted:
            self._state = "dirty"
        self._superblock = superblock
        if superblock.has_errors:
            self.problems.append("the file system has taken note of errors: it needs e2fsck")
        self._groups = Groups(superblock, source)
        self._inodes = InodeTable(superblock, self._groups, source)
        maps = BlockMaps(superblock, source)
        self._new_directories = partial(Directories, superblock, maps, source)
        self._bitmaps = Bitmaps(superblock, self._groups, source)
        self._rows = Rows(superblock, self._inodes, maps, source, overlay)
        self._begin_walk()
        self._bad_names: dict[int, str] = {}
        self._used: array[int] | None = None

    def _replay(self, superblock: Superblock, source: Source) -> Overlay | None:
        """Find out what the journal changes."""
        if not superblock.compatible & HAS_JOURNAL:
            raise DamagedError("the file system is to be recovered, and has no journal")
        number = superblock.journal_inode
        if not number:
            raise UnsupportedError("ext: an external journal that has to be replayed")
        try:
            inodes = InodeTable(superblock, Groups(superblock, source), source)
            inode = parse_inode(inodes.read(number))
            runs = BlockMaps(superblock, source).runs(number, inode)
        except DamagedError as error:
            raise DamagedError(f"the journal cannot be found: {error.reason}") from error
        if inode_defect(inode, Kind.FILE):
            raise DamagedError("the inode of the journal is no file")
        replay = Replay(JournalFile(source, superblock.block_bytes, runs), superblock.block_count)
        copies = replay.run()
        self.problems += replay.problems
        if replay.problems:
            self._state = "dirty"
        elif replay.transactions:
            self._state = "replayed"
        return Overlay(source, superblock.block_bytes, copies) if copies else None

    @property
    def facts(self) -> FileSystem:
        """What it is."""
        superblock = self._superblock
        return FileSystem(
            kind=superblock.kind,
            prefix="",
            label=superblock.label,
            uuid=superblock.uuid_text,
            block_bytes=superblock.block_bytes,
            size_bytes=superblock.size_bytes,
            state=self._state,
            place="",
            features=superblock.features,
        )

    # --- what is in use ----------------------------------------------------------------------------

    def allocated(self) -> Iterator[ByteRun]:
        """Yield everything in use, ascending and disjoint."""
        if self._used is not None:
            yield from zip(self._used[::2], self._used[1::2], strict=True)
            return
        kept: array[int] | None = array("Q")
        for run in self._bitmaps.allocated():
            yield run
            if kept is not None:
                kept.extend(run)
                if len(kept) > 2 * RUNS_KEPT_MAX:
                    kept = None
        self._used = kept

    # --- the walk ----------------------------------------------------------------------------------

    def rows(self) -> Iterator[FileRow]:
        """Yield every path, the root directory included."""
        self._begin_walk()
        frames = [_Frame(b"", ROOT_INODE)]
        frames[0].add(ROOT_INODE, b"")
        while frames:
            found = frames[-1].next()
            if found is None:
                frames.pop()
                continue
            frame = _Frame(frames[-1].join(found[1]), found[0])
            yield from self._directory_rows(frame, frames[-1].number)
            if len(frame):
                frames.append(frame)
        self._find_the_nameless()
        # The bitmaps of blocks are looked at now, so that what is wrong with them is known.
        for _ in self.allocated():
            pass
        self._tell_all(self._bitmaps.problems)

    def _begin_walk(self) -> None:
        self._directories = self._new_directories()
        self._reached = _InodeSet(self._superblock.group_inodes)
        self._visited = _InodeSet(self._superblock.group_inodes)
        self._linked: dict[int, FileRow] = {}
        self._linked_extents = 0

    def _directory_rows(self, frame: _Frame, parent: int) -> Iterator[FileRow]:
        """Yield the rows of a directory's entries, then its own; put its directories into its frame."""
        number, path = frame.number, frame.path
        try:
            raw, inode = self._named_inode(number, Kind.DIRECTORY)
        except DamagedError as error:
            yield error_row(path, number, Kind.DIRECTORY, error.reason)
            return
        self._reached.add(number)
        directory = Directory(number, inode, raw, parent)
        if number in self._bad_names:
            directory.add_defect(self._bad_names.pop(number))
        if self._visited.add(number):
            for entries in self._directories.entries(directory):
                yield from self._entry_rows(entries, directory, frame)
        else:
            directory.add_defect("the directory has another name as well")
        extents = self._rows.extents(directory.runs)
        defect = "; ".join(directory.defects)
        yield self._rows.plain_row(path, number, inode, raw, defect, b"", extents)

    def _entry_rows(
        self, entries: list[Entry], directory: Directory, frame: _Frame
    ) -> list[FileRow]:
        rows = []
        prefix = frame.path + b"/" if frame.path else b""
        is_encrypted = directory.inode.flags & ENCRYPTED
        longest = PATH_BYTES_MAX - len(prefix)
        # In the order of inodes, so that each part of their table is needed once.
        entries.sort()
        for number, name, type_number in entries:
            error = ""
            if is_encrypted:
                name = shown_name(name)
            if b"/" in name or b"\0" in name or name in _IMPOSSIBLE_NAMES:
                error = f"the name {name!r} is none"
                name = mended_name(name)
            if len(name) > longest:
                self._tell(f"a path is longer than {PATH_BYTES_MAX} bytes")
                continue
            said = ENTRY_KINDS[type_number] if type_number < 8 else None
            row = self._linked.get(number)
            if row is not None and not error and said in (None, row.kind):
                rows.append(row._replace(path=prefix + name))
                continue
            row = self._entry_row(prefix + name, number, said, error)
            if row is None:
                frame.add(number, name)
            else:
                rows.append(row)
        return rows

    def _entry_row(self, path: bytes, number: int, said: Kind | None, error: str) -> FileRow | None:
        """Return the row of a name; None if it is that of a directory, which is visited later."""
        if 0 < number <= self._superblock.inode_count:
            self._reached.add(number)
        try:
            raw, inode = self._named_inode(number, said)
        except DamagedError as damage:
            return error_row(path, number, said, f"{error}; {damage.reason}".removeprefix("; "))
        if inode.mode >> 12 == DIRECTORY_MODE:
            if error:
                self._note_bad_name(number, error)
            return None
        row = self._rows.row(path, number, inode, raw, error)
        if inode.links > 1 and not error:
            self._remember(number, row)
        return row

    def _named_inode(self, number: int, said: Kind | None) -> tuple[bytes, Inode]:
        """Return an inode that a name leads to; `DamagedError` if none may."""
        if self._superblock.is_internal(number):
            raise DamagedError(f"inode {number} belongs to the file system itself")
        raw = self._inodes.read(number)
        inode = parse_inode(raw)
        is_right = inode.links and KINDS.get(inode.mode >> 12) is said
        if not is_right or inode.flags & ATTRIBUTE_VALUE:
            defect = inode_defect(inode, said)
            if defect:
                raise DamagedError(defect)
        return raw, inode

    def _note_bad_name(self, number: int, error: str) -> None:
        """Keep what is wrong with the name of a directory until its row is made."""
        if len(self._bad_names) < BAD_NAMES_MAX:
            self._bad_names[number] = error
        else:
            self._tell(f"more than {BAD_NAMES_MAX} directories have impossible names")

    def _remember(self, number: int, row: FileRow) -> None:
        """Keep the row of a file that has more names."""
        self._linked_extents += 1 + len(row.extents)
        if self._linked_extents > LINKED_EXTENTS_MAX:
            self._linked.clear()
            self._linked_extents = 0
        else:
            self._linked[number] = row

    # --- what nothing leads to ---------------------------------------------------------------------

    def _find_the_nameless(self) -> None:
        """Compare the inodes in use with those that have been reached."""
        lost_count = free_count = 0
        for group, bitmap in self._bitmaps.inodes():
            bits = self._superblock.group_inodes
            used = int.from_bytes(bitmap, "little")
            reached = int.from_bytes(self._reached.bits(group), "little")
            first = group * bits + 1
            free_count += (reached & ~used).bit_count()
            for begin, end in set_bits((used & ~reached).to_bytes(len(bitmap), "little"), bits):
                lost_count += sum(map(self._is_lost, range(first + begin, first + end)))
        if lost_count:
            self._tell(f"{lost_count} inodes are in use and have no name")
        if free_count:
            self._tell(f"{free_count} inodes have names, and count as free")

    def _is_lost(self, number: int) -> bool:
        """Say whether an inode without a name should have one: nobody has deleted it, or it cannot be read."""
        if number < self._superblock.first_inode or self._superblock.is_internal(number):
            return number == ROOT_INODE
        try:
            inode = parse_inode(self._inodes.read(number))
        except DamagedError:
            return True
        return bool(inode.links and inode.mode and not inode.flags & ATTRIBUTE_VALUE)

    def _tell_all(self, problems: list[str]) -> None:
        for problem in problems:
            self._tell(problem)

    def _tell(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


class _Frame:
    """Directories that are still to be visited, of one directory: their names, in little memory."""

    def __init__(self, path: bytes, number: int) -> None:
        self.path = path
        self.number = number
        self._numbers = array("I")
        self._names = bytearray()
        self._next = 0
        self._at = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int, name: bytes) -> None:
        """Take a directory; no name holds a slash."""
        self._numbers.append(number)
        self._names += name + b"/"

    def next(self) -> tuple[int, bytes] | None:
        """Return the next directory, and forget it."""
        if self._next == len(self._numbers):
            return None
        end = self._names.index(b"/", self._at)
        found = self._numbers[self._next], bytes(self._names[self._at : end])
        self._next, self._at = self._next + 1, end + 1
        return found

    def join(self, name: bytes) -> bytes:
        """Return the path of a directory in this one."""
        return self.path + b"/" + name if self.path else name


class _InodeSet:
    """A set of inodes: a bit for each, in the groups that have one."""

    def __init__(self, group_inodes: int) -> None:
        self._group_inodes = group_inodes
        self._groups: dict[int, bytearray] = {}

    def add(self, number: int) -> bool:
        """Take an inode; say whether it is new."""
        group, index = divmod(number - 1, self._group_inodes)
        bits = self._groups.get(group)
        if bits is None:
            bits = self._groups[group] = bytearray(-(-self._group_inodes // 8))
        bit = 1 << (index & 7)
        if bits[index >> 3] & bit:
            return False
        bits[index >> 3] |= bit
        return True

    def bits(self, group: int) -> bytes:
        """Return the inodes of a group as a bitmap."""
        return bytes(self._groups.get(group, b""))
