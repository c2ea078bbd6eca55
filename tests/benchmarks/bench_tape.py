"""What tapes are asked for: reads of a restore of one file, and synchronous filemarks of a backup.

    python tests/benchmarks/bench_tape.py                   a backup of 10 GiB
    python tests/benchmarks/bench_tape.py --gib 1

An ext4 image is filled with files of 256 MiB that no drive can compress, and one of 1 MiB between them.  It is backed
up in a cluster of real processes, and the small file restored with `--out`.  Printed are the records that this took,
the locates and the extents of the file, and for each part of the backup its length, and how many filemarks the drive
had to wait for.  The folder (`--folder`) needs twice the size for a moment.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.parameter_list import decode_parameter_list
from backplane.scsi.segment import Locate, WriteFilemarks
from backplane.testing.cluster import LocalCluster

MIB = 1 << 20
FILE_BYTES = 256 * MIB
TARGET = "wanted/one"
PATIENCE_S = 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=int, default=10, help="what is backed up")
    parser.add_argument("--folder", type=Path, help="where it is made")
    arguments = parser.parse_args()
    print(f"{os.uname().release}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-tape-") as name:
        folder = Path(name)
        image = filled(folder, arguments.gib)
        measure(folder, image)
    return 0


def filled(folder: Path, gib: int) -> Path:
    """Make the image; the tree that it was made of is gone then."""
    tree = folder / "tree"
    (tree / "wanted").mkdir(parents=True)
    count = gib * 1024 * MIB // FILE_BYTES
    for number in range(count):
        if number == count // 2:
            (tree / TARGET).write_bytes(os.urandom(MIB))
        with (tree / f"large-{number:03}").open("wb") as file:
            for _ in range(FILE_BYTES // MIB):
                file.write(os.urandom(MIB))
    image = folder / "image"
    size = f"{gib * 1024 + gib * 40 + 200}M"
    make = ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(tree), str(image), size]
    subprocess.run(make, check=True)
    shutil.rmtree(tree)
    return image


def measure(folder: Path, image: Path) -> None:
    cluster = LocalCluster(folder, capacity="64GiB")
    cluster.up()
    try:
        cluster.ctl("volume", "create", "vol", "--from", str(image), timeout_s=PATIENCE_S)
        image.unlink()
        begun = time.monotonic()
        options = ("--inactivity", "0s", "--wait")
        job = cluster.ctl("submit", "backup", "vol", *options, timeout_s=PATIENCE_S)
        told = f"backup of {job['total_bytes'] / MIB:.0f} MiB in {time.monotonic() - begun:.0f} s"
        print(told, flush=True)
        tell_parts(cluster, job)
        restore(cluster, folder)
    finally:
        cluster.down()


def segments(item: dict[str, Any]) -> list[Any]:
    parsed = decode_parameter_list(bytes.fromhex(item["parameter_list"]), limits=MOVER_PARAMETERS)
    return list(parsed.segments) if parsed else []


def items_of(cluster: LocalCluster, job: int) -> list[dict[str, Any]]:
    """Return all items of a job, page by page."""
    found: list[dict[str, Any]] = []
    page = cluster.ctl("job", "show", str(job), timeout_s=PATIENCE_S)
    found += page["items"]
    assert page["items_total"] == len(found), "more lists than one answer has"
    return found


def tell_parts(cluster: LocalCluster, job: dict[str, Any]) -> None:
    parts = cluster.ctl("backup", "show", "vol/latest")["parts_detail"]
    marks = [s for item in items_of(cluster, job["job"]) for s in segments(item)]
    waited = [s for s in marks if isinstance(s, WriteFilemarks) and not s.w_immed]
    for part in parts:
        print(
            f"    part {part['part']}: {part['stream_bytes'] / MIB:.0f} MiB, {part['records']} records"
        )
    print(f"    filemarks that the drive was waited for: {len(waited)}, one of them for the label")


def restore(cluster: LocalCluster, folder: Path) -> None:
    explained = cluster.ctl("map", "explain", "vol/latest", "--path", TARGET)
    begun = time.monotonic()
    out = ("--out", str(folder / "out"))
    done = cluster.ctl(
        "submit", "restore", "vol/latest", "--path", TARGET, *out, timeout_s=PATIENCE_S
    )
    seconds = time.monotonic() - begun
    job = cluster.ctl("job", "show", str(done["job"]))
    records = sum(device["records_read"] for device in job["ledger"]["devices"])
    locates = [s for item in job["items"] for s in segments(item) if isinstance(s, Locate)]
    print(
        f"restore of {done['bytes'] / MIB:.1f} MiB in {len(explained['extents'])} extents: {seconds:.1f} s, "
        f"{records} records, {job['ledger']['read_bytes'] / MIB:.1f} MiB read, {len(locates)} locates"
    )


if __name__ == "__main__":
    sys.exit(main())
