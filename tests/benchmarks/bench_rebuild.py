"""How long it takes to read a lost catalog back from cartridges, and the memory of the controller meanwhile.

    python tests/benchmarks/bench_rebuild.py [--parts 100] [--files 1000000] [--mapped 10] [--cartridges 2]
    python tests/benchmarks/bench_rebuild.py --without-trailers

The cartridges are written with the format's own encoders: each part is a backup of a volume of its own with a few small
records of data, `--mapped` of them have a map of `--files` / `--mapped` files; one of 1,000,000 is `--mapped 1`.  They
are put into the library of a real tape node; controller and nodes are processes of a local cluster, and `ctl` alone
drives them.  Seconds are those from the submission to the end of the job.  The peak is what the kernel remembers of the
controller (`VmHWM`), once before and once after.

`--without-trailers` makes every trailer unreadable, so that everything is found from header to header.

**What not to conclude.**  The cartridges lie in the page cache: a tape has to be wound to each header and trailer,
which with a real drive takes minutes per cartridge.  The figures of a shared machine differ by a third from run to run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from backplane.crc import crc32c
from backplane.file_map.header import FORMAT_VERSION, MapHeader, map_digest, pack_header
from backplane.file_map.model import FileSystem
from backplane.file_map.packed import pack_rows, pack_runs
from backplane.tape_format import (
    FIRST_PART_OBJECT,
    MapLayout,
    PartHeader,
    PartTrailer,
    VolumeFacts,
    VolumeHeader,
    encode_label,
    encode_part_header,
    encode_part_trailer,
    record_digest_root,
)
from backplane.testing.cluster import LocalCluster
from backplane.testing.file_rows import BLOCK, ordinary_tree
from backplane.units import GIB, KIB, MIB
from storage_node.tape.library import TapeLibrary

NOW: Final = "2026-01-11T10:43:48Z"
RECORD_BYTES: Final = 16 * KIB
RECORDS: Final = 4
STORE: Final = "ab" * 16
VOLUME_BLOCKS: Final = 1 << 31


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=100)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--mapped", type=int, default=10, help="parts with a map")
    parser.add_argument("--cartridges", type=int, default=2)
    parser.add_argument("--without-trailers", action="store_true")
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        cluster = LocalCluster(Path(folder))
        cluster.up()
        try:
            return measure(cluster, arguments)
        finally:
            cluster.down()


def measure(cluster: LocalCluster, arguments: argparse.Namespace) -> int:
    tags = [f"BEN{number:03}L8" for number in range(1, arguments.cartridges + 1)]
    items = made_map(arguments.files // arguments.mapped)
    print(f"a map: {len(items) - 1} pages, {sum(map(len, items)) / MIB:.1f} MiB")
    cluster.kill("tape")
    with TapeLibrary(cluster.state / "tape" / "library") as library:
        for place, tag in enumerate(tags):
            library.add(tag, capacity_bytes=64 * GIB, created=NOW)
            library.load(tag)
            library.drives[0].test_unit_ready()
            mine = range(place, arguments.parts, len(tags))
            write(library.drives[0], tag, mine, items, mapped=arguments.mapped)
            library.unload()
        if arguments.without_trailers:
            for tag in tags:
                spoil_trailers(library.find(tag) / "data")
    cluster.up()
    cluster.wait_until(lambda: known(cluster, tags), what="the cartridges")
    before = peak(cluster)
    named = [word for tag in tags for word in ("--from", tag)]
    started = time.monotonic()
    done = cluster.run_ctl(
        *("catalog", "rebuild", *named, "--wait", "--output", "json"), timeout_s=600
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, (done.stdout, done.stderr, cluster.logs())
    rows = cluster.ctl("catalog", "show")
    counts = rows["rows"]
    print(f"{counts['backup']} backups, {counts['part']} parts, {counts['mapheader']} maps")
    print(f"catalog {rows['bytes'] / MIB:.0f} MiB")
    print(
        f"rebuilt in {seconds:.1f} s; controller {before:.0f} MiB before, {peak(cluster):.0f} at most"
    )
    return (
        0 if (counts["backup"], counts["mapheader"]) == (arguments.parts, arguments.mapped) else 1
    )


def known(cluster: LocalCluster, tags: list[str]) -> bool:
    found = {row["tag"] for row in cluster.ctl("tape", "list")["cartridges"]}
    return found >= set(tags)


def peak(cluster: LocalCluster) -> float:
    """Return the most memory that the controller ever had, in MiB."""
    status = Path(f"/proc/{cluster.pid('controller')}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


# --- making cartridges ---------------------------------------------------------------------------


def made_map(files: int) -> list[bytes]:
    """Return the header and the pages of a map of that many files."""
    rows = ordinary_tree(files)
    pages = list(pack_rows(rows))
    runs = list(pack_runs([(0, 64 * BLOCK)]))
    header = MapHeader(
        format_version=FORMAT_VERSION,
        volume_bytes=VOLUME_BLOCKS * 512,
        block_bytes=BLOCK,
        file_systems=(FileSystem("ext4", "", "", "", BLOCK, VOLUME_BLOCKS * 512, "clean", "", ()),),
        rows=len(rows),
        files=files,
        file_bytes=0,
        row_pages=len(pages),
        run_pages=len(runs),
        is_complete=True,
        reasons=(),
        reads=0,
        bytes_read=0,
        digest=map_digest([*pages, *runs]),
    )
    return [pack_header(header), *pages, *runs]


def write(drive: Any, tag: str, numbers: range, items: list[bytes], *, mapped: int) -> None:
    """Write the label and the parts of a cartridge."""
    uuid = hashlib.sha256(tag.encode()).hexdigest()[:32]
    label = VolumeHeader(
        format_version=1,
        cartridge=uuid,
        tag=tag,
        created=NOW,
        owner="SDV",
        store=STORE,
        record_bytes=RECORD_BYTES,
    )
    put(drive, [*encode_label(label), None])
    previous: PartTrailer | None = None
    at = FIRST_PART_OBJECT
    for number in numbers:
        part = items if number < mapped else []
        objects, previous = part_objects(uuid, number + 1, part, first=at, previous=previous)
        at += put(drive, objects)
    assert drive.write_filemarks(0).is_done


def put(drive: Any, objects: Iterator[bytes | None] | list[bytes | None]) -> int:
    """Write records, and filemarks for None; return how many."""
    count = 0
    for item in objects:
        count += 1
        if item is None:
            outcome = drive.write_filemarks(1, immediate=True)
        else:
            outcome = drive.write_record(memoryview(item), crc32c=crc32c(item))
        assert outcome.is_done, outcome
    return count


def part_objects(
    uuid: str, backup: int, items: list[bytes], *, first: int, previous: PartTrailer | None
) -> tuple[Iterator[bytes | None], PartTrailer]:
    """Return the objects of a part that is a whole backup, made as they are written, and its trailer."""
    volume = VolumeFacts(
        id=f"{backup:032x}",
        name=f"volume-{backup}",
        designator=f"3{backup:015x}",
        blocks=VOLUME_BLOCKS,
        block_bytes=512,
    )
    layout = MapLayout([len(item) for item in items])
    common: dict[str, Any] = {
        "cartridge": uuid,
        "sequence": 1 if previous is None else previous.sequence + 1,
        "backup": backup,
        "backup_uuid": f"{backup + (1 << 64):032x}",
        "part": 1,
        "volume": volume,
        "record_bytes": RECORD_BYTES,
        "stream_start": 0,
        "extents": ((0, RECORDS * RECORD_BYTES // 512),),
        "created": NOW,
        "map_state": "complete" if items else "raw",
        "pool": "default",
    }
    header = PartHeader(
        **common,
        job=backup,
        previous_cartridge="",
        view="ee" * 16,
        view_means="snapshot",
        consistency="crash",
        view_time=NOW,
        object=first,
        previous_trailer=0 if previous is None else previous.trailer_object,
        map_records=layout.records,
        map_digest=hashlib.sha256(b"".join(items[1:])).hexdigest() if items else "",
        backup_created=NOW,
    )
    [record] = encode_part_header(header)
    data = [bytes([backup % 251, number]) * (RECORD_BYTES // 2) for number in range(RECORDS)]
    crcs = tuple(crc32c(each) for each in data)
    trailer = PartTrailer(
        **common,
        header_object=first,
        data_object=first + layout.records + 2,
        records=RECORDS,
        stream_bytes=RECORDS * RECORD_BYTES,
        record_crc32c=crcs,
        root=record_digest_root(crcs),
        is_last=True,
        continued_on="",
        results=(),
        directory=() if previous is None else previous.directory,
    )
    trailer = replace(trailer, directory=(*trailer.directory, trailer.directory_entry()))

    def objects() -> Iterator[bytes | None]:
        yield record
        for number in range(layout.records):
            yield layout.encode(number, items.__getitem__, volume_uuid=uuid, first_object=first + 1)
        yield None
        yield from data
        yield None
        yield from encode_part_trailer(trailer)
        yield None

    return objects(), trailer


def spoil_trailers(data: Path) -> None:
    """Change a byte in every trailer of a cartridge file."""
    mark, at = b"SDVMETA\0\0\3", 0
    with data.open("r+b") as file:
        content = file.read()
        while (at := content.find(mark, at)) >= 0:
            file.seek(at + 100)
            file.write(bytes([content[at + 100] ^ 1]))
            at += len(mark)


if __name__ == "__main__":
    sys.exit(main())
