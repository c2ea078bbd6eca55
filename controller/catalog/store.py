"""The catalog: its rows, and what any implementation of it promises.

Rows are frozen dataclasses with plain fields; the core makes them, `commit` stores them.  One call of `commit` is one
transaction: either every row is durable when it returns, or it raised and none is.  A row replaces the row with
the same key (its fields marked in `KEYS`).  There is one writer: the controller process that holds the lock.

File maps are what is large here: pages of packed rows, written one by one as they come from a node and read one after
the other, never all at once.  The header is written last and makes them a map; pages without one are what is left of a
mapping that did not end, and are dropped.  `DropMap` and `DropRow` are the changes that take rows away.

Times are RFC 3339 UTC text.  Byte strings are stored as they are.  `detail` fields hold JSON objects for what is only
shown, never searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from backplane.ids import (
    BackupId,
    CartridgeId,
    Designator,
    Epoch,
    ItemId,
    JobId,
    NodeName,
    ViewId,
    VolumeId,
    VolumeTag,
)

_NO_BACKUP: Final = BackupId(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterRow:
    """A number that only grows: `epoch`, `job`, `item`, `backup`, `wait`, `boot`."""

    name: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A storage node that has ever been here."""

    name: NodeName
    public_key: bytes
    addresses: tuple[str, ...]
    roles: tuple[str, ...]
    boot_id: bytes
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRow:
    """A volume that the catalog knows.  `is_deleted` rows stay, because backups name them."""

    volume: VolumeId
    name: str
    node: NodeName
    designator: Designator
    blocks: int
    block_bytes: int
    token: str
    created: str
    is_deleted: bool
    quiet_s: float = -1.0
    """Write inactivity period of this volume; -1 means the controller's."""
    sync_timeout_s: float = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietWaitRow:
    """One wait for write inactivity: what became of it.  `wait` counts up."""

    wait: int
    volume: VolumeId
    job: JobId
    asked: str
    quiet_s: float
    waited_s: float
    is_found: bool
    writer: str
    """Who wrote last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CartridgeRow:
    """A cartridge.  `end` is end of data as of the last committed part; `sequence` that part's number, 0 if none."""

    tag: VolumeTag
    cartridge: CartridgeId
    node: NodeName
    status: str
    detail: str
    end: int
    sequence: int
    capacity_bytes: int
    created: str
    pool: str = ""
    """The pool that it belongs to; empty for scratch."""
    vault: str = ""
    """Where it is when no library has it; empty if nobody has said."""
    hold: str = ""
    """Why it must not be erased whatever its retention says (a legal hold); empty if there is none."""
    first_written: str = ""
    """When the first part since it was labelled was committed; empty if there is none."""
    last_written: str = ""
    retain_until: str = ""
    """The node refuses to erase it before this; empty if nothing is retained.  `9999-12-31T23:59:59Z` is for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRow:
    """A pool of cartridges.  `docs/media.md` has the meaning of every field."""

    pool: str
    retain_s: int
    """How long after its last write a cartridge is kept; 0 not at all, -1 for ever."""
    allocation: str
    """`continue` (the fullest writable one), `always` (an unused one for each job), or `every:SECONDS` (an unused one
    when the first write is longer ago)."""
    takes_scratch: bool
    """Whether blank and recyclable cartridges of no pool are taken when its own are used up."""
    created: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveRow:
    """What an operator has said of a drive; a drive of which nobody has said anything has none."""

    node: NodeName
    drive: str
    is_down: bool
    """Nobody gets it."""
    reason: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRow:
    """A job that is submitted by the clock.  `arguments` is the JSON of `job.submit`'s, without the token."""

    schedule: str
    calendar: str
    arguments: str
    created: str
    last_run: str
    last_job: JobId
    is_enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job.  `plan` is the JSON that a restarted controller needs to go on; `result` the JSON of the report."""

    job: JobId
    kind: str
    state: str
    reason: str
    token: str
    subject: str
    volume_name: str
    volume: VolumeId
    backup: BackupId
    view: ViewId
    submitted: str
    started: str
    ended: str
    planned_bytes: int
    done_bytes: int
    error_count: int
    exit_code: int
    """-1 until the job has ended."""
    seconds_copying: float
    is_cancelled: bool
    plan: str
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRow:
    """A work item: one parameter list and what became of it.  Never deleted with its job still listed."""

    item: ItemId
    job: JobId
    purpose: str
    state: str
    attempt: int
    movers: tuple[str, ...]
    """Every mover that it was leased to, in order."""
    epoch: Epoch
    parameter_list: bytes
    planned_bytes: int
    status: int
    """SCSI status; -1 until the item has ended."""
    sense: bytes
    segments: int
    seconds: float
    ledger: str
    """JSON list of ledger entries."""
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRow:
    """A backup.  `state` is `building` until the last part is committed, then `completed` or `failed`."""

    backup: BackupId
    backup_uuid: str
    job: JobId
    volume: VolumeId
    volume_name: str
    blocks: int
    block_bytes: int
    record_bytes: int
    stream_bytes: int
    state: str
    created: str
    consistency: str
    view_means: str
    detail: str
    level: str = "full"
    """`full`, `differential` or `incremental`."""
    parent: BackupId = _NO_BACKUP
    """The backup on which this one stands; 0 for a full one."""
    tracking: str = ""
    """History of changed blocks, and its generation, that the view contained; "" if there was none."""
    generation: int = 0
    samples: bytes = b""
    """Packed `>QII`: byte address, bytes, CRC32C of some ranges of the view, for a later incremental's doubt."""
    map_state: str = "none"
    """`complete`, `incomplete`, `raw` (nobody wanted a map) or `none` (nothing on the volume is known)."""
    files: int = 0
    """Regular files in the map."""
    selection: str = ""
    """JSON of the `Selection` whose files alone are in the backup, "" if all are: such a one nobody stands on."""
    pool: str = ""
    is_protected: bool = False
    """Never pruned."""
    copy_of: BackupId = _NO_BACKUP
    """The backup of which this one is a second copy, record by record; 0 for an original."""
    lanes: int = 1
    """Drives that wrote it at once: each wrote one stretch of the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRow:
    """A committed part: written only after the synchronous filemark came back with position and digest."""

    backup: BackupId
    part: int
    tag: VolumeTag
    cartridge: CartridgeId
    sequence: int
    header_object: int
    data_object: int
    trailer_object: int
    end: int
    records: int
    stream_start: int
    stream_bytes: int
    root: str
    is_last: bool
    created: str
    lane: int = 0
    """Which stretch of the stream it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtentsRow:
    """The extents of a backup in stream order, packed by `extent_map`."""

    backup: BackupId
    packed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MapHeaderRow:
    """The header of a backup's file map, packed by `backplane.file_map.header`: with it the pages are a map."""

    backup: BackupId
    packed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPageRow:
    """A page of a file map, as its node packed it: rows of paths, or with `is_run` runs of what is allocated.

    `first_path` and `last_path` are `path_key` of its paths, empty for runs.  It may be older than the row of its
    backup, which comes with the header.
    """

    backup: BackupId
    page: int
    is_run: bool
    first_path: bytes
    last_path: bytes
    rows: int
    """Rows or runs in it; a row that goes on from the page before is none of them."""
    packed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DropMap:
    """Not a row: take away the header and all pages of a backup's map, as far as they came before in the commit."""

    backup: BackupId


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyMap:
    """Not a row: give `backup` the map of another one, as far as it came before in the commit; what it had is gone."""

    backup: BackupId
    source: BackupId

    def __post_init__(self) -> None:
        assert self.backup != self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class DropRow:
    """Not a row: take away the row with the key of this one.

    Only of kinds that no other row names by number: parts name a cartridge by its barcode and its UUID, and outlive it.
    """

    row: PoolRow | ScheduleRow | CartridgeRow


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeStore:
    """Not a row: the catalog is from now on the one with this UUID (32 hex digits), which labelled its cartridges."""

    store: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a catalog is: where, bytes with its log, and rows of each kind of which there are not too many."""

    place: str
    bytes: int
    rows: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """A line of a job's log.  `level` is `info`, `warning` or `error`."""

    job: JobId
    sequence: int
    time: str
    level: str
    text: str


Row: TypeAlias = (
    CounterRow
    | NodeRow
    | VolumeRow
    | CartridgeRow
    | JobRow
    | ItemRow
    | BackupRow
    | PartRow
    | ExtentsRow
    | MapHeaderRow
    | MapPageRow
    | EventRow
    | QuietWaitRow
    | PoolRow
    | DriveRow
    | ScheduleRow
)

Change: TypeAlias = Row | DropMap | CopyMap | DropRow | TakeStore
"""What a commit is made of."""

KEYS: Final[dict[type, tuple[str, ...]]] = {
    CounterRow: ("name",),
    NodeRow: ("name",),
    VolumeRow: ("volume",),
    CartridgeRow: ("tag",),
    JobRow: ("job",),
    ItemRow: ("item",),
    BackupRow: ("backup",),
    PartRow: ("backup", "part"),
    ExtentsRow: ("backup",),
    MapHeaderRow: ("backup",),
    MapPageRow: ("backup", "page"),
    EventRow: ("job", "sequence"),
    QuietWaitRow: ("wait",),
    PoolRow: ("pool",),
    DriveRow: ("node", "drive"),
    ScheduleRow: ("schedule",),
}
"""The fields that identify a row of each table."""


def subtree_end(key: bytes) -> bytes:
    """Return the first key behind a path and all that is below it; of the root it means nothing."""
    return key + b"\1"


def with_whole_rows(
    first: int, last: int, *, ends: Callable[[int], tuple[bytes, bytes] | None]
) -> tuple[int, int]:
    """Widen a range of pages until no row of it goes on outside: only then can rows be joined.

    `ends` says with which keys a page of rows begins and ends, None if there is no such page.  A row goes on if the
    next page begins with the key with which this one ends.
    """
    here = ends(first)
    while here is not None and (before := ends(first - 1)) is not None and before[1] == here[0]:
        first, here = first - 1, before
    here = ends(last)
    while here is not None and (behind := ends(last + 1)) is not None and behind[0] == here[1]:
        last, here = last + 1, behind
    return first, last


ENDED_STATES: Final = frozenset({"completed", "partial", "failed", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the core starts from: everything small, and the jobs that have not ended with their items."""

    store: str
    counters: dict[str, int] = field(default_factory=dict)
    nodes: tuple[NodeRow, ...] = ()
    volumes: tuple[VolumeRow, ...] = ()
    cartridges: tuple[CartridgeRow, ...] = ()
    jobs: tuple[JobRow, ...] = ()
    items: tuple[ItemRow, ...] = ()
    backups: tuple[BackupRow, ...] = ()
    parts: tuple[PartRow, ...] = ()
    pools: tuple[PoolRow, ...] = ()
    drives: tuple[DriveRow, ...] = ()
    schedules: tuple[ScheduleRow, ...] = ()
    event_sequences: dict[JobId, int] = field(default_factory=dict)
    partial_maps: tuple[BackupId, ...] = ()
    """Backups with pages of a map and no header: what is left of a mapping that a crash has ended."""


class Catalog(Protocol):
    """Storage of rows.  Not thread-safe: one thread owns it."""

    @property
    def store(self) -> str:
        """UUID of this catalog, 32 hex digits, made when it was created."""

    def commit(self, rows: Sequence[Change]) -> None:
        """Make the rows durable in one transaction, in order.  An empty sequence does nothing."""

    def load(self) -> Snapshot:
        """Return where the core left off."""

    def size(self) -> Size:
        """Return how large the catalog is; pages of maps and lines of logs are not counted."""

    def jobs(self, *, limit: int, state: str = "") -> list[JobRow]:
        """Return jobs, newest first."""

    def job(self, job: JobId) -> JobRow | None:
        """Return one job."""

    def job_by_token(self, token: str) -> JobRow | None:
        """Return the job that was submitted with this token."""

    def items(self, job: JobId, *, first: ItemId, limit: int) -> list[ItemRow]:
        """Return items of a job with number >= `first`, in order."""

    def item_count(self, job: JobId) -> int:
        """Return how many items a job has."""

    def events(self, job: JobId, *, after: int, limit: int) -> list[EventRow]:
        """Return log lines with sequence > `after`, in order."""

    def extents(self, backup: BackupId) -> bytes | None:
        """Return the packed extents of a backup."""

    def map_header(self, backup: BackupId) -> bytes | None:
        """Return the packed header of a backup's map, None if it has none."""

    def map_page(self, backup: BackupId, page: int) -> MapPageRow | None:
        """Return one page of a map."""

    def map_pages(
        self, backup: BackupId, *, first: int = 0, under: bytes = b""
    ) -> Iterator[MapPageRow]:
        """Yield the pages from `first` on, in order, a few at a time: a map need not fit into memory.

        With `under`, a path, only those in which it or what is below it may be, and the rest of rows that go on beyond
        them; no runs then.  A commit between two pages may be seen or not.
        """

    def quiet_waits(self, volume: VolumeId, *, limit: int) -> list[QuietWaitRow]:
        """Return the waits for quiet of a volume, newest first."""

    def close(self) -> None:
        """Close the database; the object is unusable afterwards."""
