"""Every control message.  This file is the specification of the control plane.

On the wire a message is msgpack `[kind, {field: value}]`; every field is named, typed and required.  Kinds are
`noun.verb`.  Requests to storage nodes and to the controller's operator interface carry `request`, a number the
sender chose, which the answer repeats; they are idempotent, so a request may be sent again until it is answered.

Who sends what:

    everyone -> controller     session.hello, session.ping
    controller -> everyone     session.welcome, session.refused, session.unknown, session.pong, protocol.fault
    mover -> controller        work.request, work.progress, work.done
    controller -> mover        work.item, work.extended, work.acknowledged, work.revoked
    storage node -> controller node.inventory, node.reply, node.failed
    controller -> storage node unit.fence, volume.*, view.*, tape.*
    operator -> controller     operator.call
    controller -> operator     operator.reply, operator.failed

Field types that the codec understands: int (>= 0 unless said), float, bool, str, bytes, tuple[X, ...] and
nested records of this file.  `Limit` in an annotation bounds the length of str, bytes and tuples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from backplane.ids import (
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

PROTOCOL_VERSIONS: Final = (1,)
MESSAGE_BYTES_MAX: Final = 1024 * 1024
"""Largest control message a peer may send us (ZMQ_MAXMSGSIZE); a larger one drops the connection."""

REPLY_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest message `ctl` accepts from the controller it trusts (listings, job reports)."""

PARAMETER_LIST_BYTES_MAX: Final = 900 * 1024
"""Largest parameter list in one work item; leaves room for grants within `MESSAGE_BYTES_MAX`."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Most elements of a str (characters), bytes or tuple field."""

    most: int


Name = Annotated[str, Limit(128)]
Text = Annotated[str, Limit(4096)]
Blob = Annotated[bytes, Limit(960 * 1024)]


class Message:
    """Base of all messages."""

    kind: ClassVar[str]
    __slots__ = ()


# --- session -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHello(Message):
    """First message of every peer, and its answer to `session.unknown`.

    The sender lists the protocol versions it speaks; `role` is `mover`, `storage` or `operator` and must be the role
    that the controller's key table gives to the sender's CURVE key.
    """

    kind: ClassVar[str] = "session.hello"
    role: Name
    name: NodeName
    versions: Annotated[tuple[int, ...], Limit(16)]
    boot_id: Annotated[bytes, Limit(16)]
    program: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionWelcome(Message):
    """The controller chose a version.  A storage node answers with `node.inventory`, a mover with `work.request`.

    `store` is the UUID of the catalog.  `heartbeat_s` is how often the peer must be heard.
    """

    kind: ClassVar[str] = "session.welcome"
    version: int
    store: Name
    heartbeat_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRefused(Message):
    """No common version, or the role does not fit the key.  The peer reports the reason and exits."""

    kind: ClassVar[str] = "session.refused"
    reason: Text
    hint: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionUnknown(Message):
    """The controller has no session with the sender (it restarted): say hello again."""

    kind: ClassVar[str] = "session.unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPing(Message):
    """Proof of life of an idle peer.  Any other message proves life as well."""

    kind: ClassVar[str] = "session.ping"
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPong(Message):
    """Answer to `session.ping`."""

    kind: ClassVar[str] = "session.pong"
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolFault(Message):
    """The sender got something that is no message; sent once per bad message, never in answer to a fault."""

    kind: ClassVar[str] = "protocol.fault"
    reason: Text


# --- work ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Where the logical unit behind a designator is, and the grant to use there."""

    designator: Designator
    node: NodeName
    addresses: Annotated[tuple[Annotated[str, Limit(256)], ...], Limit(8)]
    node_key: Annotated[bytes, Limit(32)]
    grant: Annotated[bytes, Limit(64 * 1024)]
    tag: Annotated[bytes, Limit(32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRequest(Message):
    """The mover can take `credit` more work items.  Repeated until answered; the newest one counts."""

    kind: ClassVar[str] = "work.request"
    credit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem(Message):
    """One EXTENDED COPY(LID1) parameter list, leased for `lease_s` seconds from its sending.

    The mover executes it once, reports `work.progress` at least every `lease_s` / 5 and stops by itself at 0.8 of the
    lease counted from the sending of the last progress that was answered.  The same (item, epoch) again is a
    doubled message: it is ignored while running and answered with the kept `work.done` afterwards.
    """

    kind: ClassVar[str] = "work.item"
    item: ItemId
    job: JobId
    epoch: Epoch
    lease_s: float
    parameter_list: Blob
    units: Annotated[tuple[Resolution, ...], Limit(16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkProgress(Message):
    """The item is being executed; asks for the lease to be extended."""

    kind: ClassVar[str] = "work.progress"
    item: ItemId
    epoch: Epoch
    sequence: int
    segment: int
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkExtended(Message):
    """The lease lasts `lease_s` from the sending of progress number `sequence`."""

    kind: ClassVar[str] = "work.extended"
    item: ItemId
    epoch: Epoch
    sequence: int
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What one work item moved at one logical unit.

    Bytes count data that the unit acknowledged; padding made by the copy manager counts as written and in
    `bytes_padded`; bytes thrown away by rule (06h, residue) count in `bytes_discarded`.  `position` is the object
    number after the last tape command, 0 for block devices.  `under_runs` counts how often the unit was idle in the
    middle of a run because nothing was there to write.
    """

    designator: Designator
    bytes_read: int
    bytes_written: int
    bytes_padded: int
    bytes_discarded: int
    records_read: int
    records_written: int
    filemarks_written: int
    rereads: int
    position: int
    under_runs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkDone(Message):
    """The item ended.  Repeated until acknowledged; idempotent by (item, epoch).

    `status` is the SCSI status of the command, `sense` its fixed-format sense data (empty on GOOD),
    `segments` the number of segments processed (RECEIVE COPY STATUS).
    """

    kind: ClassVar[str] = "work.done"
    item: ItemId
    epoch: Epoch
    status: int
    sense: Annotated[bytes, Limit(252)]
    segments: int
    ledger: Annotated[tuple[LedgerEntry, ...], Limit(16)]
    seconds: float
    detail: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkAcknowledged(Message):
    """The result is durable, or no longer wanted: the mover forgets it."""

    kind: ClassVar[str] = "work.acknowledged"
    item: ItemId
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRevoked(Message):
    """Stop the item now (cancelled, or re-leased elsewhere).  The mover answers with `work.done`, status 40h."""

    kind: ClassVar[str] = "work.revoked"
    item: ItemId
    epoch: Epoch
    reason: Text


# --- storage nodes: what they have ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LegState:
    """A leg of a backup mirror.  `state` is `resynchronising`, `in-sync`, `split` or `failed`; `reason` says why."""

    name: Name
    path: Text
    state: Name
    reason: Text
    bytes_left: int
    bytes_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeState:
    """A volume as its node knows it.

    `state` is `online`, `restoring` (offline, being written by a restore), `restore-failed` (offline) or `importing`.
    `used_bytes` is what is allocated.  `held_by` is the job whose static view holds it, or 0.
    `is_empty` is true while no byte was ever written to it.  `path` is the data file or device, as the node sees it.
    `idle_s` is the time since the last write ended, -1 if there was none since the node started; `last_writer` who that
    was.  `connections` are workstations that are connected now.  `is_read_only`: a flush of its data failed.
    `tracking` and `generation` name its history of changed blocks; "" if there is none.
    """

    volume: VolumeId
    name: Name
    designator: Designator
    blocks: int
    block_bytes: int
    used_bytes: int
    state: Name
    held_by: JobId
    is_empty: bool
    epoch: Epoch
    path: Text
    idle_s: float = -1.0
    last_writer: Text = ""
    connections: int = 0
    is_read_only: bool = False
    tracking: Name = ""
    generation: int = 0
    legs: Annotated[tuple[LegState, ...], Limit(8)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewState:
    """A static view as its node knows it.  `state` is `active` or `broken`; `reason` says why.

    `means` is `snapshot`, `clone`, `mirror` or `hold`.  The view contains everything up to and including `generation`
    of the history `tracking`; "" if changes are not tracked.  `used_bytes` is what the view takes beside the volume.
    `consistency` is `crash`, or what hooks made of it: `file-system` or `application`.
    """

    view: ViewId
    volume: VolumeId
    job: JobId
    designator: Designator
    blocks: int
    block_bytes: int
    means: Name
    state: Name
    reason: Text
    tracking: Name = ""
    generation: int = 0
    used_bytes: int = 0
    created: Text = ""
    consistency: Name = "crash"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveUsage:
    """What a real drive (`model`) would have spent since the node started: counts, seconds, bytes on the medium.

    `load_s` is for loads and unloads, `streaming_s` is when the tape moved with data.  `back_hitches` are the stops for
    lack of data (or of somebody who takes them), `synchronisations` those that were asked for.
    """

    model: Name
    loads: int
    load_s: float
    locates: int
    locate_s: float
    rewind_s: float
    streaming_s: float
    synchronisations: int
    back_hitches: int
    back_hitch_s: float
    bytes_written: int
    bytes_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveState:
    """A data transfer element.  `state` is `empty`, `loaded` or `error`; `loaded` is the barcode in it.

    `product` and `serial` are what INQUIRY says of it, `alerts` its TapeAlert flags (flag n is bit n - 1), `loads` how
    often a cartridge was put in, `needs_cleaning` whether it asks for a cleaning cartridge.  `read_errors` and
    `write_errors` are counted over its life.  `usage` is empty without a model of a real drive.
    """

    drive: Name
    designator: Designator
    state: Name
    loaded: Annotated[str, Limit(32)]
    epoch: Epoch
    product: Name = ""
    serial: Name = ""
    alerts: int = 0
    loads: int = 0
    needs_cleaning: bool = False
    read_errors: int = 0
    write_errors: int = 0
    usage: Annotated[tuple[DriveUsage, ...], Limit(1)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CartridgeState:
    """A cartridge as found in the library.

    `cartridge` is the UUID in its volume header, empty when blank.  `status` is `blank`, `writable`, `full`,
    `foreign`, `cleaning` or `error`; `detail` says why.  `end` is the object number of end of data.  `element` is where
    it is: `slot-N`, `drive-N`, `io-N`.  `store` is the catalog that labelled it.  `retain_until` and `is_held` are what
    the node itself refuses to erase for.  `used_bytes` is what is taken of
    the capacity, `record_bytes` what the records on it have without compression.  `alerts` are TapeAlert flags of the
    medium (flag n is bit n - 1), `read_errors` and `write_errors` are counted over its life.  `is_out_of_space`: it has
    room, but the disk under a virtual library has no more than the reserves before its end.
    """

    tag: VolumeTag
    cartridge: CartridgeId
    status: Name
    detail: Text
    capacity_bytes: int
    used_bytes: int
    end: int
    generation: int
    element: Name = ""
    store: Annotated[str, Limit(32)] = ""
    retain_until: Name = ""
    is_held: bool = False
    is_worm: bool = False
    is_write_protected: bool = False
    record_bytes: int = 0
    loads: int = 0
    alerts: int = 0
    read_errors: int = 0
    write_errors: int = 0
    is_out_of_space: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInventory(Message):
    """Everything a storage node has.  Sent after `session.welcome` and whenever it changed by itself."""

    kind: ClassVar[str] = "node.inventory"
    boot_id: Annotated[bytes, Limit(16)]
    public_key: Annotated[bytes, Limit(32)]
    addresses: Annotated[tuple[Annotated[str, Limit(256)], ...], Limit(8)]
    roles: Annotated[tuple[Name, ...], Limit(4)]
    volumes: Annotated[tuple[VolumeState, ...], Limit(2048)]
    views: Annotated[tuple[ViewState, ...], Limit(2048)]
    drives: Annotated[tuple[DriveState, ...], Limit(64)]
    cartridges: Annotated[tuple[CartridgeState, ...], Limit(2048)]
    nbd_addresses: Annotated[tuple[Annotated[str, Limit(256)], ...], Limit(8)] = ()
    """Where workstations reach the volumes."""


# --- storage nodes: requests ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFence(Message):
    """Raise the fence floor of a logical unit to `epoch`, durably, and say where it stands.

    After the answer no request of a lower epoch can reach the medium.  With a `lane` (1 to `LANES_MAX`) this is so for
    writers in that lane only; 0 fences the whole unit, all lanes included.  Answered by `unit.fenced`.
    """

    kind: ClassVar[str] = "unit.fence"
    request: int
    designator: Designator
    epoch: Epoch
    lane: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFenced(Message):
    """The floor is durable.  `position` is the drive's end of data (0 for block devices)."""

    kind: ClassVar[str] = "unit.fenced"
    request: int
    designator: Designator
    epoch: Epoch
    boot_id: Annotated[bytes, Limit(16)]
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeCreate(Message):
    """Make an empty volume.  The same `volume` again is answered with what exists."""

    kind: ClassVar[str] = "volume.create"
    request: int
    volume: VolumeId
    name: Name
    size_bytes: int
    block_bytes: int
    state: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeAttach(Message):
    """Use an existing block device or image file of the node, in place, as a volume."""

    kind: ClassVar[str] = "volume.attach"
    request: int
    volume: VolumeId
    name: Name
    path: Text
    block_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeDelete(Message):
    """Delete a volume and its data.  Refused while a view holds it or a restore writes it."""

    kind: ClassVar[str] = "volume.delete"
    request: int
    volume: VolumeId


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeOffline(Message):
    """Take a volume offline as the target of a restore: state `restoring`, all content discarded, durably.

    Refused with `busy` while held; with `refused` if not empty and not `is_forced`.
    """

    kind: ClassVar[str] = "volume.offline"
    request: int
    volume: VolumeId
    job: JobId
    epoch: Epoch
    is_forced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePublish(Message):
    """End of a restore or import: flush, raise the fence floor to `epoch` durably, then set `state`.

    `state` is `online` (all data are there) or `restore-failed`.
    """

    kind: ClassVar[str] = "volume.publish"
    request: int
    volume: VolumeId
    job: JobId
    epoch: Epoch
    state: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMirror(Message):
    """Change the backup mirror of a volume.  `action` is `add`, `remove` or `resync`; `path` the folder of a new leg.

    Answered with the volume; `resync` and `add` go on in the background.
    """

    kind: ClassVar[str] = "volume.mirror"
    request: int
    volume: VolumeId
    action: Name
    leg: Name
    path: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewMember:
    """One more volume whose view is made in the same instant."""

    view: ViewId
    volume: VolumeId


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewCreate(Message):
    """Obtain a static view.  The same `view` again is answered with what exists.

    The node waits for `quiet_s` seconds without writes, at most `timeout_s`; fails with kind `not-quiet`.  While it
    waits it tells `view.waiting`.  `means` is `auto`, `snapshot`, `mirror` or `hold`.  `protected` is what will be
    read, as packed `>QQ` (LBA, blocks); b"" means everything.  With a `group`, all views are made in one instant or
    none is.
    """

    kind: ClassVar[str] = "view.create"
    request: int
    view: ViewId
    volume: VolumeId
    job: JobId
    quiet_s: float
    timeout_s: float
    ttl_s: float
    means: Name = "auto"
    protected: Blob = b""
    group: Annotated[tuple[ViewMember, ...], Limit(15)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewWaiting(Message):
    """How the wait for quiet stands: for how long, since when it is quiet, and who wrote last.  Not answered."""

    kind: ClassVar[str] = "view.waiting"
    view: ViewId
    waited_s: float
    idle_s: float
    last_writer: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRelease(Message):
    """Release a view.  Idempotent: a view that does not exist is released."""

    kind: ClassVar[str] = "view.release"
    request: int
    view: ViewId


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewExtents(Message):
    """Ask for the allocated extents of a view or volume from `start_lba`, at most `extents_max`.

    With `tracking`, only for those that changed after generation `since_generation` of that history; fails with
    kind `not-found` if the node cannot say.
    """

    kind: ClassVar[str] = "view.extents"
    request: int
    designator: Designator
    start_lba: int
    extents_max: int
    tracking: Name = ""
    since_generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSample(Message):
    """Ask for the CRC32C of some ranges of a view: packed `>QQ` (LBA, blocks), answered in `digests`."""

    kind: ClassVar[str] = "view.sample"
    request: int
    designator: Designator
    extents: Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewMap(Message):
    """Map the blocks of a static view to files.  The same again is answered with the map that exists.

    While the node works it tells `view.mapping`.  Answered with `map_header`; fails with kind `refused`, and the reason
    names it, if there is a file system or a layer that cannot be read, with `medium` if there is one that is damaged,
    with `not-found` if there is nothing that is known.
    """

    kind: ClassVar[str] = "view.map"
    request: int
    view: ViewId


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewMapping(Message):
    """How the mapping stands.  Not answered."""

    kind: ClassVar[str] = "view.mapping"
    view: ViewId
    files: int
    bytes_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewMapPage(Message):
    """Ask for page `page`, from 0, of a view's map; the header says how many there are.  Answered with `map_page`."""

    kind: ClassVar[str] = "view.page"
    request: int
    view: ViewId
    page: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewNarrow(Message):
    """Only `extents` of a view will still be read: the rest is no longer protected, and may be refused to readers.

    Packed `>QQ` (LBA, blocks), ascending.  A view is only ever narrowed; the same again changes nothing.
    """

    kind: ClassVar[str] = "view.narrow"
    request: int
    view: ViewId
    extents: Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeReserve(Message):
    """Keep workstations away from a volume that stays online, while a job puts files back onto it.

    Refused with `busy` while one is connected, or if another job has it.  Ends by `volume.unreserve`, by itself after
    `ttl_s`, and with the node's process.  The same again prolongs it.  One that comes late, when a fence has overtaken
    its `epoch`, is refused: nobody would end it.  With `is_shared` workstations stay, and the job
    may not write a moment longer than `ttl_s`.
    """

    kind: ClassVar[str] = "volume.reserve"
    request: int
    volume: VolumeId
    job: JobId
    ttl_s: float
    epoch: Epoch
    is_shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeZero(Message):
    """Write zeros to `extents` (packed `>QQ`: LBA, blocks) of a volume that the job has reserved.

    Refused if the job has not had it all the time since it reserved it, and if a fence has overtaken `epoch`: what was
    to be zeroed then may be another's now.  Without extents only the first is asked.  It lets the reservation last for
    its `ttl_s` from now on, and is durable when it is answered.
    """

    kind: ClassVar[str] = "volume.zero"
    request: int
    volume: VolumeId
    job: JobId
    extents: Blob
    epoch: Epoch = Epoch(0)  # noqa: RUF009 - a number


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeUnreserve(Message):
    """End a reservation; what was written is durable then.  Idempotent."""

    kind: ClassVar[str] = "volume.unreserve"
    request: int
    volume: VolumeId
    job: JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeSample(Message):
    """Ask for the CRC32C of pieces of records of the loaded cartridge: packed `>QII` (object, first byte, bytes).

    Each record is read whole and checked first.  Answered in `digests`; fails with kind `medium` at a damaged one.
    """

    kind: ClassVar[str] = "tape.sample"
    request: int
    drive: Name
    ranges: Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeLoad(Message):
    """Put a cartridge into a drive (unloading another), read its label and last trailer.

    A drive may be named by its serial number.  A cleaning cartridge cleans the drive and goes back to its slot.
    Answered with `CartridgeState`, `DriveState` and the last trailer found, so that the controller never appends blind.
    """

    kind: ClassVar[str] = "tape.load"
    request: int
    drive: Name
    tag: VolumeTag
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeDigest(Message):
    """Ask for the stored CRC32C of the records `start` .. `end` - 1 (filemarks have none and are left out)."""

    kind: ClassVar[str] = "tape.digest"
    request: int
    drive: Name
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeAdd(Message):
    """Add a blank cartridge to the virtual library; `is_worm`: write once, read many."""

    kind: ClassVar[str] = "tape.add"
    request: int
    tag: VolumeTag
    capacity_bytes: int
    is_worm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeScan(Message):
    """Look through all elements of the library anew (INITIALIZE ELEMENT STATUS); an inventory follows the answer."""

    kind: ClassVar[str] = "tape.scan"
    request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeMove(Message):
    """Move a cartridge that is in no drive to another element: `slot-N`, `io-N`, or `slot` or `io` for any free one.

    `io` is an export: an operator may take the cartridge out.  `slot` from there is an import.
    """

    kind: ClassVar[str] = "tape.move"
    request: int
    tag: VolumeTag
    to: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeUnload(Message):
    """Fence a drive, flush it, and put its cartridge back into a slot; an empty drive is no error."""

    kind: ClassVar[str] = "tape.unload"
    request: int
    drive: Name
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeErase(Message):
    """Make the cartridge in a drive blank, which takes everything that is on it.

    Refused by the node itself while retention (its own record, or what is on the tape) or a hold lasts, and for WORM,
    whoever asks.  `is_forced` is needed for a tape that is no blank one and none of ours.  A retention ends when it has
    by the node's clock, and by `now` of whoever asks (RFC 3339, "" if that is not told).
    """

    kind: ClassVar[str] = "tape.erase"
    request: int
    drive: Name
    tag: VolumeTag
    epoch: Epoch
    is_forced: bool = False
    now: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeRetain(Message):
    """Keep a cartridge from being erased: until a moment (RFC 3339, never brought forward), and while a hold lasts.

    With `retain_s` (seconds, -1 for ever, 0 none) also for so long from now on: by the clock of the node or by `now`
    (RFC 3339, "" if it is not told), whichever is later.
    """

    kind: ClassVar[str] = "tape.retain"
    request: int
    tag: VolumeTag
    retain_until: Name
    is_held: bool
    retain_s: int = 0
    now: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeMetadata(Message):
    """Read metadata records of the loaded cartridge, from an object on, up to a filemark or the size of an answer.

    Answered in `records` (each as `>I` length and bytes) with `next_object` behind the last one; empty at a filemark,
    at end of data and at a record that is no metadata.  Ends before a damaged one; fails with kind `medium` if that is
    the first.
    """

    kind: ClassVar[str] = "tape.metadata"
    request: int
    drive: Name
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeAttributes(Message):
    """Read all attributes of a cartridge's memory (READ ATTRIBUTE, service action 00h); answered in `attributes`."""

    kind: ClassVar[str] = "tape.attributes"
    request: int
    tag: VolumeTag


# --- storage nodes: answers ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReply(Message):
    """Request `request` was carried out.  Only the fields that belong to the request are filled.

    `volumes`, `views`, `drives`, `cartridges`: the objects concerned, after the change.
    `extents`: packed `>QQ` pairs (LBA, blocks) for view.extents; `next_lba` is where to go on, or the number of blocks.
    `digests`: packed `>I` CRC32C values for tape.digest, tape.sample and view.sample; `next_object` is where to go on.
    `map_header`: the packed header of a file map for view.map; `map_page`: one of its pages for view.page.
    `end`, `durable_end`: end of data of the loaded cartridge, and up to where it is on the medium.
    For tape.load: `header` is the payload of the volume header (b"" if none).  Of the last committed part, if any:
    `trailer_sequence` its number on the cartridge (0 if none), `trailer` the JSON payload of its own directory entry
    (`tape_format.DirectoryEntry`), `trailer_digest` the SHA-256 of the whole trailer payload, which may be too large
    for a message.
    `clock`: what the node's clock shows (RFC 3339), for tape.load, tape.unload, tape.erase and tape.retain.
    `records`: for tape.metadata.  `attributes`: for tape.attributes, as on the wire of READ ATTRIBUTE.
    """

    kind: ClassVar[str] = "node.reply"
    request: int
    boot_id: Annotated[bytes, Limit(16)]
    volumes: Annotated[tuple[VolumeState, ...], Limit(4)] = ()
    views: Annotated[tuple[ViewState, ...], Limit(16)] = ()
    drives: Annotated[tuple[DriveState, ...], Limit(4)] = ()
    cartridges: Annotated[tuple[CartridgeState, ...], Limit(4)] = ()
    extents: Blob = b""
    next_lba: int = 0
    digests: Blob = b""
    next_object: int = 0
    map_header: Blob = b""
    map_page: Blob = b""
    end: int = 0
    durable_end: int = 0
    header: Blob = b""
    trailer_sequence: int = 0
    trailer: Blob = b""
    trailer_digest: Annotated[bytes, Limit(32)] = b""
    records: Blob = b""
    attributes: Blob = b""
    clock: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFailed(Message):
    """Request `request` was not carried out.  `error` is a `BackupError.kind`."""

    kind: ClassVar[str] = "node.failed"
    request: int
    error: Name
    reason: Text
    hint: Text


# --- operators -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCall(Message):
    """A verb of `ctl` with its arguments as a JSON object; `docs/protocol.md` lists verbs and arguments."""

    kind: ClassVar[str] = "operator.call"
    request: int
    verb: Name
    arguments: Annotated[bytes, Limit(256 * 1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorReply(Message):
    """The answer, a JSON document."""

    kind: ClassVar[str] = "operator.reply"
    request: int
    document: Annotated[bytes, Limit(REPLY_BYTES_MAX - 4096)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorFailed(Message):
    """The call failed.  `error` is a `BackupError.kind`, `exit_code` what `ctl` exits with."""

    kind: ClassVar[str] = "operator.failed"
    request: int
    error: Name
    reason: Text
    hint: Text
    exit_code: int


ALL: Final[tuple[type[Message], ...]] = (
    SessionHello,
    SessionWelcome,
    SessionRefused,
    SessionUnknown,
    SessionPing,
    SessionPong,
    ProtocolFault,
    WorkRequest,
    WorkItem,
    WorkProgress,
    WorkExtended,
    WorkDone,
    WorkAcknowledged,
    WorkRevoked,
    NodeInventory,
    UnitFence,
    UnitFenced,
    VolumeCreate,
    VolumeAttach,
    VolumeDelete,
    VolumeOffline,
    VolumePublish,
    VolumeMirror,
    ViewCreate,
    ViewWaiting,
    ViewRelease,
    ViewExtents,
    ViewSample,
    ViewMap,
    ViewMapping,
    ViewMapPage,
    ViewNarrow,
    VolumeReserve,
    VolumeZero,
    VolumeUnreserve,
    TapeLoad,
    TapeDigest,
    TapeSample,
    TapeAdd,
    TapeScan,
    TapeMove,
    TapeUnload,
    TapeErase,
    TapeRetain,
    TapeMetadata,
    TapeAttributes,
    NodeReply,
    NodeFailed,
    OperatorCall,
    OperatorReply,
    OperatorFailed,
)
