"""Run lists of NTFS: which clusters an attribute has, and what that makes of a file.

A run list is a chain of (clusters, distance to the cluster where the previous run began); no distance is a hole.  An
attribute with many runs has its list in pieces over several records, each piece with the virtual clusters (VCN) it
covers; they must join without a gap.

    virtual clusters   0      3            16     19            32
    plain or sparse    [ data | hole ..... | data | hole ...... ]       each cluster for itself
    compressed         [ unit of 16, 3 kept| unit of 16, 3 kept ]       a unit with all clusters is not compressed

Behind `initialized` a file reads as zeros, whatever its clusters hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

from backplane.file_map.model import ExtentFlag, FileExtent
from storage_node.mapping.ntfs_boot import Geometry
from storage_node.mapping.ntfs_record import Attribute, Piece
from storage_node.mapping.reader import DamagedError

HOLE: Final = -1
EXTENTS_MAX: Final = 1_000_000
UNIT_SHIFT_MAX: Final = 8
UNIT_BYTES_MAX: Final = 1024 * 1024
"""Windows compresses units of 16 clusters of at most 4 KiB; a mover must hold one."""

COMPRESSED_MASK: Final = 0x00FF
LZNT1_METHOD: Final = 1
ENCRYPTED: Final = 0x4000

_FIRST_VCN: Final = attrgetter("first_vcn")
_UNWRITTEN: Final = int(ExtentFlag.UNWRITTEN)
_ENCRYPTED: Final = int(ExtentFlag.ENCRYPTED)
_COMPRESSED: Final = int(ExtentFlag.COMPRESSED)

Run = tuple[int, int, int]
"""(first VCN, cluster or HOLE, clusters)."""


class Stream(NamedTuple):
    """An attribute that lies in clusters, put together from its pieces."""

    size: int
    initialized: int
    flags: int
    unit_clusters: int
    """Clusters of a compression unit; 0 if the stream is not compressed."""
    runs: list[Run]


def decode_runs(piece: Piece, cluster_count: int) -> list[Run]:
    """Return the runs of a piece; `DamagedError` if they leave the volume or do not fill the piece."""
    data = piece.runs
    at = cluster = 0
    vcn, end_vcn = piece.first_vcn, piece.end_vcn
    number = int.from_bytes
    runs: list[Run] = []
    while at < len(data) and data[at]:
        count_bytes, distance_bytes = data[at] & 15, data[at] >> 4
        distance_at = at + 1 + count_bytes
        end = distance_at + distance_bytes
        if not 1 <= count_bytes <= 8 or distance_bytes > 8 or end > len(data):
            raise DamagedError("its run list is damaged")
        count = number(data[at + 1 : distance_at], "little", signed=True)
        if not 0 < count <= end_vcn - vcn:
            raise DamagedError("its run list covers more than it should")
        if distance_bytes:
            cluster += number(data[distance_at:end], "little", signed=True)
            if not 0 <= cluster <= cluster_count - count:
                raise DamagedError("its run list leaves the volume")
            runs.append((vcn, cluster, count))
        else:
            runs.append((vcn, HOLE, count))
        vcn += count
        at = end
    if at >= len(data) or vcn != end_vcn:
        raise DamagedError("its run list ends too early")
    return runs


def join_pieces(attributes: Sequence[Attribute], geometry: Geometry) -> Stream:
    """Put the pieces of one attribute together; `DamagedError` if one is missing, or the sizes cannot be."""
    pieces = [found.piece for found in attributes if found.piece is not None]
    if not pieces or len(pieces) != len(attributes):
        raise DamagedError("it is missing, or a part of it is in a record")
    pieces.sort(key=_FIRST_VCN)
    runs: list[Run] = []
    vcn = 0
    for piece in pieces:
        if piece.first_vcn != vcn:
            raise DamagedError(f"of its clusters, those from {vcn} on are missing")
        runs += decode_runs(piece, geometry.cluster_count)
        vcn = piece.end_vcn
        if len(runs) > EXTENTS_MAX:
            raise DamagedError(f"it has more than {EXTENTS_MAX} extents")
    head, flags = pieces[0], attributes[0].flags
    if head.allocated != vcn * geometry.cluster_bytes:
        raise DamagedError(f"{head.allocated} bytes are allocated, and {vcn} clusters")
    if not 0 <= head.initialized <= head.size <= head.allocated:
        raise DamagedError("its sizes contradict each other")
    unit = _unit_clusters(head, flags, geometry) if flags & COMPRESSED_MASK else 0
    return Stream(head.size, head.initialized, flags, unit, runs)


def extents_of(stream: Stream, cluster_bytes: int) -> tuple[list[FileExtent], str]:
    """Return what the file map says of a stream, and why it does not say all ("" if it does)."""
    if stream.unit_clusters:
        extents, defect = _compressed_extents(stream, cluster_bytes)
    else:
        extents, defect = _plain_extents(stream.runs, stream, cluster_bytes), ""
    if len(extents) > EXTENTS_MAX:
        return extents[:EXTENTS_MAX], f"it has more than {EXTENTS_MAX} extents"
    return extents, defect


def written_end(stream: Stream, cluster_bytes: int) -> int:
    """Return the first byte that reads as zeros whatever is there.

    Where all data are initialized that is the end of their last cluster, so that it stays one extent.
    """
    if stream.initialized < stream.size:
        return stream.initialized
    return -(-stream.size // cluster_bytes) * cluster_bytes


def _unit_clusters(head: Piece, flags: int, geometry: Geometry) -> int:
    if flags & COMPRESSED_MASK != LZNT1_METHOD:
        raise DamagedError(f"it is compressed by an unknown method, {flags & COMPRESSED_MASK}")
    unit = 1 << min(head.unit_shift, UNIT_SHIFT_MAX + 1)
    if not 1 < unit <= 1 << UNIT_SHIFT_MAX or unit * geometry.cluster_bytes > UNIT_BYTES_MAX:
        raise DamagedError(f"it is compressed in units of 2^{head.unit_shift} clusters")
    return unit


def _plain_extents(runs: list[Run], stream: Stream, cluster_bytes: int) -> list[FileExtent]:
    """Runs that follow each other, in the file and on the volume, are one extent."""
    flags = _ENCRYPTED if stream.flags & ENCRYPTED else 0
    end = written_end(stream, cluster_bytes)
    extents: list[FileExtent] = []
    for vcn, cluster, count in _merged(runs):
        file_byte, volume_byte = vcn * cluster_bytes, cluster * cluster_bytes
        byte_count = count * cluster_bytes
        written = min(max(end - file_byte, 0), byte_count)
        if written:
            extents.append(FileExtent(file_byte, volume_byte, written, flags))
        if written < byte_count:
            rest = (file_byte + written, volume_byte + written, byte_count - written)
            extents.append(FileExtent(*rest, flags | _UNWRITTEN))
    return extents


def _merged(runs: list[Run]) -> list[Run]:
    """Join neighbours, and leave holes out."""
    if len(runs) == 1 and runs[0][1] != HOLE:
        return runs
    merged: list[Run] = []
    next_vcn = next_cluster = -1
    for vcn, cluster, count in runs:
        if cluster == HOLE:
            continue
        if vcn == next_vcn and cluster == next_cluster:
            first_vcn, first_cluster, before = merged[-1]
            merged[-1] = (first_vcn, first_cluster, before + count)
        else:
            merged.append((vcn, cluster, count))
        next_vcn, next_cluster = vcn + count, cluster + count
    return merged


def _compressed_extents(stream: Stream, cluster_bytes: int) -> tuple[list[FileExtent], str]:
    extents: list[FileExtent] = []
    plain: list[Run] = []
    scattered = []
    for parts in _units(stream):
        clusters = sum(count for _, _, count in parts)
        if clusters % stream.unit_clusters == 0:
            plain.extend(parts)
            continue
        first, cluster, _ = parts[0]
        if first % stream.unit_clusters or parts[-1][0] + parts[-1][2] != first + clusters:
            return extents, f"the compressed unit at cluster {first} has a hole in it"
        if parts[-1][1] + parts[-1][2] != cluster + clusters or not _is_one_run(parts):
            scattered.append(first * cluster_bytes)
            continue
        extents.append(_unit_extent(stream, first, cluster, clusters, cluster_bytes))
    extents += _plain_extents(plain, stream, cluster_bytes)
    extents.sort()
    if scattered:
        return extents, (
            f"{len(scattered)} compressed units, the first at byte {scattered[0]}, lie in several places each"
        )
    return extents, ""


def _units(stream: Stream) -> Iterator[list[Run]]:
    """Yield the runs of each unit that has clusters; units with all of theirs in one run may come together."""
    unit = stream.unit_clusters
    parts: list[Run] = []
    for vcn, cluster, count in stream.runs:
        while cluster != HOLE and count:
            if parts and parts[0][0] // unit != vcn // unit:
                yield parts
                parts = []
            if not parts and vcn % unit == 0 and count >= unit:
                taken = count - count % unit
                yield [(vcn, cluster, taken)]
            else:
                taken = min(count, unit - vcn % unit)
                parts.append((vcn, cluster, taken))
            vcn, cluster, count = vcn + taken, cluster + taken, count - taken
    if parts:
        yield parts


def _is_one_run(parts: list[Run]) -> bool:
    distances = {cluster - vcn for vcn, cluster, _ in parts}
    return len(distances) == 1


def _unit_extent(
    stream: Stream, vcn: int, cluster: int, clusters: int, cluster_bytes: int
) -> FileExtent:
    file_byte, volume_byte = vcn * cluster_bytes, cluster * cluster_bytes
    stored_bytes = clusters * cluster_bytes
    raw_bytes = stream.unit_clusters * cluster_bytes
    shown = raw_bytes
    if stream.initialized < stream.size:
        shown = min(raw_bytes, stream.initialized - file_byte)
    if shown <= 0 or file_byte >= stream.size:
        return FileExtent(file_byte, volume_byte, stored_bytes, _UNWRITTEN)
    flags = _COMPRESSED | (_ENCRYPTED if stream.flags & ENCRYPTED else 0)
    return FileExtent(
        file_byte, volume_byte, shown, flags, stored_bytes, raw_bytes, algorithm="lznt1"
    )
