"""Map an image where it lies, and ask a library for a second opinion: the command `storage-node map`.

    image --> Mapper, our readers  ----------------> map --------------------+
          --> Mapper, the library, one for each ---> its map of one file  ---+--> compared path by path
              file system that it knows              system

The library is just another parser: it runs in a process of its own behind a builder of its own, with the same limits,
the same one way to see a byte, and nothing else (mapper.py).  What it does costs its own opinion: a crash, a hang, a
runaway become the reason why there is none, and the next file system is asked about as if nothing had happened.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from backplane.errors import BackupError, ExitCode, RefusedError
from backplane.file_map.header import MapHeader, unpack_header
from backplane.file_map.model import FileRow, FileSystem
from backplane.file_map.packed import join_rows, join_runs
from backplane.file_map.paths import is_below
from backplane.ids import ViewId
from backplane.runtime.clock import Clock
from storage_node.mapping import sandbox
from storage_node.mapping.image import Image
from storage_node.mapping.limits import MappingRules
from storage_node.mapping.map_file import MapFile
from storage_node.mapping.mapper import BlockDevice, Mapper
from storage_node.mapping.opinion_compare import Comparison, compare

LIBRARY: Final = "pytsk3"
REQUIREMENT: Final = "pytsk3>=20260715"
MODULE: Final = "storage_node.mapping.opinion_process"
"""Not imported here: it loads the library."""

FILE_SYSTEMS: Final = frozenset(
    {"ext2", "ext3", "ext4", "ntfs", "fat12", "fat16", "fat32", "exfat"}
)
"""What the library reads."""

_VIEW: Final = ViewId("0" * 32)
"""There is one map in a folder, and it needs some name."""


class Outcome(StrEnum):
    """What became of a second opinion."""

    AGREES = "agrees"
    DIFFERS = "differs"
    FAILED = "failed"
    """The library crashed, reached a limit, or could not open what it should know."""
    NONE = "none"
    """The library does not know this file system."""


class Opinion(NamedTuple):
    """What the library says of one file system."""

    file_system: FileSystem
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    """Why it failed; or what the library, or the checks of what it says, found wrong."""
    comparison: Comparison | None = None


class Survey(NamedTuple):
    """All that was found out about an image."""

    image: str
    header: MapHeader
    allocated_bytes: int
    opinions: tuple[Opinion, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """0, or 3 if a second opinion differs or was not to be had of what the library should know."""
        is_doubtful = {opinion.outcome for opinion in self.opinions} & {
            Outcome.DIFFERS,
            Outcome.FAILED,
        }
        return ExitCode.PARTIAL if is_doubtful else ExitCode.OK


def require_library() -> None:
    """Raise `RefusedError` with what to do if the library is not installed."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise RefusedError(
            f"a second opinion needs {LIBRARY}, which is not installed",
            hint=f"pip install '{REQUIREMENT}'",
        )


def survey(
    path: Path,
    *,
    rules: MappingRules,
    clock: Clock,
    has_opinion: bool = False,
    library: Sequence[str] = (),
) -> Survey:
    """Map an image, and compare with the library if wanted; raises `BackupError` if there is no map.

    `library` is the command of its process; tests have others.
    """
    if has_opinion and not library:
        require_library()
    command = list(library or sandbox.python(MODULE))
    with Image(path) as image, tempfile.TemporaryDirectory(prefix="storage-node-map-") as name:
        mapper = Mapper(Path(name) / "ours", rules=rules, clock=clock)
        header, ours = _mapped(mapper, image)
        opinions = []
        for number, system in enumerate(header.file_systems if has_opinion else ()):
            asked = Mapper(
                Path(name) / f"library-{number}",
                rules=rules,
                clock=clock,
                parser=[*command, system.prefix],
            )
            opinions.append(opinion_of(asked, image, system, _rows_below(ours, header, system)))
            asked.folder.sweep([])
        allocated_bytes = sum(
            end - begin
            for begin, end in join_runs(map(ours.page, range(header.row_pages, ours.page_count)))
        )
        return Survey(str(path), header, allocated_bytes, tuple(opinions))


def _mapped(mapper: Mapper, device: BlockDevice) -> tuple[MapHeader, MapFile]:
    header = unpack_header(mapper.mapping(_VIEW, device).run())
    return header, mapper.folder.open(_VIEW)


def opinion_of(
    mapper: Mapper, device: BlockDevice, system: FileSystem, ours: Iterable[FileRow]
) -> Opinion:
    """Have a mapper whose parser asks the library map one file system, and compare; never raises `BackupError`."""
    if system.kind not in FILE_SYSTEMS:
        return Opinion(system, Outcome.NONE)
    try:
        header, library = _mapped(mapper, device)
    except BackupError as error:
        return Opinion(system, Outcome.FAILED, (error.message,))
    comparison = compare(ours, _rows_below(library, header, system))
    outcome = Outcome.AGREES if comparison.agrees else Outcome.DIFFERS
    return Opinion(system, outcome, header.reasons, comparison)


def _rows_below(file: MapFile, header: MapHeader, system: FileSystem) -> Iterator[FileRow]:
    """Yield the rows of one file system, in order."""
    prefix = system.prefix.encode()
    for row in join_rows(map(file.page, range(header.row_pages))):
        if not prefix or row.path == prefix or is_below(row.path, prefix):
            yield row
