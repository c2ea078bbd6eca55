"""Maps of files as a node would make them, of a file system that is a table: which blocks belong to which path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from backplane.file_map.header import FORMAT_VERSION, MapHeader, map_digest, pack_header
from backplane.file_map.model import (
    ByteRun,
    FileExtent,
    FileRow,
    FileSystem,
    Identity,
    Kind,
)
from backplane.file_map.packed import pack_rows, pack_runs
from backplane.file_map.paths import path_key


@dataclass(frozen=True)
class Made:
    """A map: what `view.map` and `view.page` answer."""

    header: MapHeader
    pages: tuple[bytes, ...]

    @property
    def packed_header(self) -> bytes:
        """The header as it travels."""
        return pack_header(self.header)


@dataclass
class Files:
    """What a mapper would find on a volume: LBAs of each path, and which blocks nobody uses."""

    table: dict[str, tuple[int, ...]] = field(default_factory=dict)
    free: set[int] = field(default_factory=set)
    reasons: tuple[str, ...] = ()
    """Why the map is incomplete."""
    rows_per_page: int = 1000
    inodes: dict[str, int] = field(default_factory=dict)
    """Of those that are not 1."""
    odd: list[FileRow] = field(default_factory=list)
    """Rows that a table of blocks cannot say."""
    state: str = "clean"

    def copy(self) -> Files:
        """Return them as they are now."""
        return replace(
            self,
            table=dict(self.table),
            free=set(self.free),
            inodes=dict(self.inodes),
            odd=list(self.odd),
        )

    def rows(self, *, block_bytes: int) -> list[FileRow]:
        """Return the rows of a map."""
        rows = rows_of(self.table, block_bytes=block_bytes)
        rows = [
            each._replace(identity=Identity(0, self.inodes.get(each.path.decode(), 1), 0))
            for each in rows
        ]
        return sorted([*rows, *self.odd], key=lambda each: path_key(each.path))

    def map(self, *, blocks: int, block_bytes: int) -> Made:
        """Map them."""
        used = [lba for lba in range(blocks) if lba not in self.free]
        return make_map(
            self.rows(block_bytes=block_bytes),
            [(lba * block_bytes, (lba + 1) * block_bytes) for lba in used],
            volume_bytes=blocks * block_bytes,
            reasons=self.reasons,
            rows_per_page=self.rows_per_page,
            state=self.state,
        )


def row(
    path: str | bytes,
    kind: Kind = Kind.FILE,
    *,
    extents: tuple[FileExtent, ...] = (),
    size: int = 0,
) -> FileRow:
    """Return a row with nothing special about it."""
    name = path if isinstance(path, bytes) else path.encode()
    return FileRow(
        path=name,
        kind=kind,
        size=size or sum(extent.byte_count for extent in extents),
        mode=0o644,
        uid=0,
        gid=0,
        mtime_ns=0,
        atime_ns=0,
        ctime_ns=0,
        birth_ns=0,
        links=1,
        identity=Identity(0, 1, 0),
        extents=extents,
    )


def rows_of(table: Mapping[str, tuple[int, ...]], *, block_bytes: int) -> list[FileRow]:
    """Return the rows of files with these blocks, their directories and the root included, sorted."""
    folders = {""}
    for path in table:
        parts = path.split("/")[:-1]
        folders |= {"/".join(parts[:count]) for count in range(1, len(parts) + 1)}
    rows = [row(path, Kind.DIRECTORY) for path in folders]
    for path, lbas in table.items():
        extents = tuple(
            FileExtent(number * block_bytes, lba * block_bytes, block_bytes)
            for number, lba in enumerate(lbas)
        )
        rows.append(row(path, extents=extents))
    return sorted(rows, key=lambda each: path_key(each.path))


def make_map(
    rows: list[FileRow],
    runs: Iterable[ByteRun],
    *,
    volume_bytes: int,
    reasons: tuple[str, ...] = (),
    rows_per_page: int = 1000,
    state: str = "clean",
) -> Made:
    """Pack a map."""
    row_pages = [
        page
        for at in range(0, len(rows), rows_per_page)
        for page in pack_rows(rows[at : at + rows_per_page])
    ]
    run_pages = pack_runs(runs)
    header = MapHeader(
        format_version=FORMAT_VERSION,
        volume_bytes=volume_bytes,
        block_bytes=512,
        file_systems=(
            FileSystem(
                kind="ext4",
                prefix="",
                label="",
                uuid="",
                block_bytes=512,
                size_bytes=volume_bytes,
                state=state,
                place="the whole volume",
            ),
        ),
        rows=len(rows),
        files=sum(each.kind == Kind.FILE for each in rows),
        file_bytes=sum(each.size for each in rows),
        row_pages=len(row_pages),
        run_pages=len(run_pages),
        is_complete=not reasons,
        reasons=reasons,
        reads=1,
        bytes_read=volume_bytes,
        digest=map_digest([*row_pages, *run_pages]),
    )
    return Made(header, (*row_pages, *run_pages))
