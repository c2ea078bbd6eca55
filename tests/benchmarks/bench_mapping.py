"""How fast real file systems with many small files are mapped, what that reads, and what memory it takes.

    python tests/benchmarks/bench_mapping.py [--files 100000] [--fs ext4,xfs,btrfs,ntfs,exfat] [--folder /tmp]
    python tests/benchmarks/bench_mapping.py --files 1000000 --fs ext4 --cluster --restore

The pipeline is that of a node: builder and parser as processes of their own, reads of the view in a thread of the node
(here: of this program), the finished map in a file.  Peaks are what the kernel remembers of each process (`VmHWM`),
looked at every 20 ms and at last when a process has ended for good, so a short-lived one may have had a little more.

Folders are filled one after the other, as a copy does it.  With `--in-turn` they all grow at a time, as spools do: then
neighbours in a folder are far from each other on the volume.

`--yardstick` runs our reader alone and pytsk3 (the extra `second-opinion`) in turn over the same image: both make a
row of each path, with attributes and extents.  Files per second of CPU are another figure on every machine and with
every build of CPython; how many times pytsk3 we are is less so.  It has neither XFS nor btrfs.

`--stages` goes through the same steps once more, one after the other in this process, and prints the CPU of each.

`--cluster` takes the same image through a real cluster, by `ctl` alone: volume, backup, and with `--restore` one file
of 1 MiB out of it.  It prints the peaks of controller, nodes and mover, and for the restore what the job's own ledger
says: records that were read, and how often the drive was sent elsewhere.

**What not to conclude.**  The image was written by one program in one go and lies in the page cache: a volume that has
lived for years has more extents, and a disk that has to seek takes its time for each read.  Files per second are of
files with a name, an inode and at most one extent.  The figures of a shared machine differ by a third from run to run.

Needs root and loop devices, to fill the images; a file system that cannot be made here is named and left out.  Every
image is gone at the end: 1,000,000 files need 10 GiB for a moment, with `--cluster` 25 GiB.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import psutil

from backplane.file_map.header import MapHeader, unpack_header
from backplane.ids import ViewId
from backplane.runtime.clock import SystemClock
from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.parameter_list import decode_parameter_list
from backplane.scsi.segment import Locate
from backplane.testing import btrfs_images, disk_images, ext_images, ntfs_images, xfs_images
from backplane.testing.cluster import LocalCluster
from backplane.units import GIB, KIB, MIB
from storage_node.mapping.build import MapBuilder
from storage_node.mapping.channel import Channel
from storage_node.mapping.image import Image
from storage_node.mapping.limits import MappingRules, spool_bytes_max
from storage_node.mapping.map_file import MapWriter
from storage_node.mapping.mapper import Mapper
from storage_node.mapping.probe import allocated, probe, rows
from storage_node.mapping.spool import Spool
from storage_node.mapping.stream import Say, Teller

FOLDERS = 100
TARGET = "folder-050/target"
VIEW = ViewId("11" * 16)
LOOK_S = 0.02
PATIENCE_S = 3600.0
YARDSTICK_ROUNDS = 3
PROCESSES = {
    "storage_node.mapping.builder_process": "builder",
    "storage_node.mapping.parser_process": "parser",
}


class Kind(NamedTuple):
    """A file system: what it lacks here, how it is made, and how it is mounted."""

    missing: Callable[[], str]
    make: Callable[[Path, int], object]
    mounted: Callable[[Path, Path], Any]


def make_ext4(image: Path, files: int) -> None:
    disk_images.run("mke2fs", "-q", "-F", "-t", "ext4", "-N", str(files * 5 // 4 + 1000), image)


def make_xfs(image: Path, files: int) -> None:
    disk_images.run("mkfs.xfs", "-q", "-f", "-i", "maxpct=50", image)


def make_btrfs(image: Path, files: int) -> None:
    disk_images.run("mkfs.btrfs", "-q", "-f", image)


def make_ntfs(image: Path, files: int) -> None:
    disk_images.run("mkntfs", "-q", "-F", "-f", image)


def make_exfat(image: Path, files: int) -> None:
    disk_images.run("mkfs.exfat", "-c", "4096", image)


def missing_exfat() -> str:
    if os.geteuid() or not Path("/dev/fuse").exists() or not Path("/dev/loop-control").exists():
        return "needs root, /dev/fuse and loop devices"
    return disk_images.missing("mkfs.exfat", "mount.exfat-fuse", "losetup")


@contextmanager
def mounted_exfat(image: Path, folder: Path) -> Iterator[Path]:
    device = disk_images.run("losetup", "--find", "--show", image).strip()
    try:
        disk_images.run("mount.exfat-fuse", device, folder)
        try:
            yield folder
        finally:
            disk_images.run("umount", folder)
    finally:
        disk_images.run("losetup", "--detach", device)
        while device in disk_images.run("losetup", "--list", "--noheadings", "--output", "NAME"):
            time.sleep(0.01)  # the driver writes what it has after umount has returned


KINDS = {
    "ext4": Kind(lambda: ext_images.missing(needs_mount=True), make_ext4, ext_images.mounted),
    "xfs": Kind(xfs_images.missing_for_mounts, make_xfs, xfs_images.mounted),
    "btrfs": Kind(btrfs_images.missing_mount, make_btrfs, btrfs_images.mounted),
    "ntfs": Kind(ntfs_images.missing, make_ntfs, lambda image, _: ntfs_images.mounted(image)),
    "exfat": Kind(missing_exfat, make_exfat, mounted_exfat),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--fs", default=",".join(KINDS), help="which, with commas between")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--in-turn", action="store_true", help="fill all folders at a time")
    parser.add_argument("--yardstick", action="store_true", help="our readers against pytsk3")
    parser.add_argument("--stages", action="store_true", help="which stage takes how much CPU")
    parser.add_argument("--cluster", action="store_true", help="a real backup as well")
    parser.add_argument("--restore", action="store_true", help="with --cluster: one file of it")
    arguments = parser.parse_args()
    print(f"{platform.platform()}, CPython {platform.python_version()}, {os.cpu_count()} cores")
    print(f"load of the last minute {os.getloadavg()[0]:.1f}")
    for name in arguments.fs.split(","):
        kind = KINDS[name]
        if kind.missing():
            print(f"{name}: {kind.missing()}")
            continue
        with tempfile.TemporaryDirectory(prefix="sb-bench-", dir=arguments.folder) as folder:
            image = made(kind, arguments.files, Path(folder), is_in_turn=arguments.in_turn)
            map_alone(name, image, Path(folder))
            if arguments.yardstick:
                print_yardstick(name, image)
            if arguments.stages:
                print_stages(image, Path(folder))
            if arguments.cluster or arguments.restore:
                map_in_cluster(image, Path(folder), has_restore=arguments.restore)
    return 0


# --- the image -----------------------------------------------------------------------------------


def made(kind: Kind, files: int, folder: Path, *, is_in_turn: bool = False) -> Path:
    """Make an image with so many files, a quarter of them empty, and one of 1 MiB among them."""
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(GIB + files * 6 * KIB)
    kind.make(image, files)
    (folder / "mounted").mkdir()
    begun = time.monotonic()
    with kind.mounted(image, folder / "mounted") as root:
        for number in range(FOLDERS):
            (root / f"folder-{number:03}").mkdir()
        for number in range(files):
            at = number % FOLDERS if is_in_turn else number * FOLDERS // files
            place = f"{root}/folder-{at:03}/a file with the number {number:07}"
            with open(place, "wb", buffering=0) as file:
                if number % 4:
                    file.write(b"%07d " % number * 40)
        (root / TARGET).write_bytes(os.urandom(MIB))
    print(f"filled in {time.monotonic() - begun:.0f} s", flush=True)
    return image


# --- the pipeline alone --------------------------------------------------------------------------


class Peaks:
    """The most memory that each process below some others has had, by what it is."""

    def __init__(self, roots: dict[int, str]) -> None:
        self.peaks: dict[str, int] = defaultdict(int)
        self._roots = roots
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peaks")

    @contextmanager
    def watched(self) -> Iterator[dict[str, int]]:
        """Watch while the block runs."""
        self._thread.start()
        try:
            yield self.peaks
        finally:
            self._stop.set()
            self._thread.join()
            self._look()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        for pid, name in self._roots.items():
            self._note(pid, name)
            try:
                for child in psutil.Process(pid).children(recursive=True):
                    found = [PROCESSES[word] for word in child.cmdline() if word in PROCESSES]
                    for each in found[:1]:
                        self._note(child.pid, each)
            except psutil.Error:
                continue  # it has ended meanwhile

    def _note(self, pid: int, name: str) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                self.peaks[name] = max(self.peaks[name], int(line.split()[1]) * KIB)


def map_alone(name: str, image: Path, folder: Path) -> None:
    """Map the image as a node does, and print what it took."""
    mapper = Mapper(folder / "maps", rules=MappingRules(), clock=SystemClock())
    before = cpu_of_children()
    with Image(image) as view, Peaks({os.getpid(): "this program"}).watched() as peaks:
        begun = time.monotonic()
        header = unpack_header(mapper.mapping(VIEW, view).run())
        seconds = time.monotonic() - begun
    size = (folder / "maps" / f"{VIEW}.map").stat().st_size
    mapper.folder.remove(VIEW)
    print(
        f"{name}: {header.files} files in {seconds:.1f} s, {header.files / seconds:.0f} files/s, "
        f"{cpu_of_children() - before:.1f} CPU-seconds of builder and parser"
    )
    print(f"    {facts(header)}, map of {size / header.rows:.0f} bytes a row")
    print(f"    peaks {peak_text(peaks)}", flush=True)


class Heard:
    """Takes what a parser says and keeps it, in the place of a channel."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []

    def send(self, kind: int, payload: bytes) -> None:
        """Keep a frame."""
        self.frames.append((kind, payload))


def print_stages(image: Path, folder: Path) -> None:
    """Print the CPU-seconds of each stage, in one process and without a channel between them."""
    heard = Heard()
    teller = Teller(cast("Channel", heard))
    with Image(image) as view, (folder / "stages").open("w+b") as file:
        gc.collect()
        gc.disable()  # as in both processes
        begun = time.process_time()
        layout = probe(Direct(view))
        found = list(rows(layout))
        read = time.process_time()
        teller.rows(found)
        told = time.process_time()
        del found
        teller.runs(allocated(layout))
        teller.facts([each.facts for each in layout.file_systems], layout.notes)
        with tempfile.TemporaryFile(dir=folder) as spool:
            builder = MapBuilder(
                view.size_bytes,
                view.block_bytes,
                spool=Spool(spool.fileno(), bytes_max=spool_bytes_max(view.size_bytes)),
            )
            take = {Say.ROWS: builder.add_rows, Say.RUNS: builder.add_runs}
            ready = time.process_time()
            for kind, payload in heard.frames:
                take.get(Say(kind), builder.add_facts)(payload)
            taken = time.process_time()
            builder.finish(MapWriter(file.fileno()))
        gc.enable()
    stages = {
        "reader": read - begun,
        "encoding": told - read,
        "taking and checking": taken - ready,
        "sorting and packing": time.process_time() - taken,
    }
    text = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items())
    print(f"    CPU-seconds of stages: {text}", flush=True)


# --- the readers alone ---------------------------------------------------------------------------


def print_yardstick(name: str, image: Path) -> None:
    """Print how many rows a second of CPU our reader makes, and pytsk3 of the same image."""
    best: dict[str, float] = {}
    readers = {"our reader": read_alone}
    if find_spec("pytsk3") and name in ("ext4", "ntfs", "exfat"):
        readers["pytsk3"] = walk_with_library
    with Image(image) as view:
        for _ in range(YARDSTICK_ROUNDS):
            for reader, walk in readers.items():
                gc.collect()
                gc.disable()
                begun = time.process_time()
                count = walk(Direct(view))
                rate = count / (time.process_time() - begun)
                gc.enable()
                best[reader] = max(rate, best.get(reader, 0))
    text = ", ".join(f"{reader} {rate / 1000:.0f}k" for reader, rate in best.items())
    print(f"    rows per CPU-second, best of {YARDSTICK_ROUNDS}: {text}", end="")
    print(f", {best['our reader'] / best['pytsk3']:.2f}x" if "pytsk3" in best else "", flush=True)


def read_alone(source: Direct) -> int:
    """Make all rows of an image, keep them, and count them."""
    return len(list(rows(probe(source))))


def walk_with_library(source: Direct) -> int:
    """Make all rows of an image with pytsk3, each a path with attributes and extents, and count them."""
    import pytsk3  # an extra: everything else here works without it

    class Bytes(pytsk3.Img_Info):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

        def get_size(self) -> int:
            return source.size_bytes

        def read(self, offset: int, count: int) -> bytes:
            return source.read(offset, min(count, source.size_bytes - offset))

    library = pytsk3.FS_Info(Bytes())
    size = library.info.block_size
    found: list[tuple[Any, ...]] = []
    waiting = [(library.info.root_inum, b"")]
    seen = {library.info.root_inum}
    while waiting:
        folder, path = waiting.pop()
        for entry in library.open_dir(inode=folder):
            meta, name = entry.info.meta, path + entry.info.name.name
            if meta is None or entry.info.name.name in (b".", b".."):
                continue
            if meta.type == pytsk3.TSK_FS_META_TYPE_DIR:
                runs = []
                if meta.addr not in seen:
                    seen.add(meta.addr)
                    waiting.append((meta.addr, name + b"/"))
            else:
                runs = [
                    (run.offset * size, run.addr * size, run.len * size, int(run.flags))
                    for attribute in entry
                    for run in attribute
                ]
            times = (meta.mtime, meta.mtime_nano, meta.atime, meta.ctime, meta.crtime)
            owner = (int(meta.mode), meta.uid, meta.gid, meta.nlink)
            found.append((name, int(meta.type), meta.size, *owner, *times, meta.addr, runs))
    return len(found)


class Direct:
    """An image as a reader's source."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.size_bytes = image.size_bytes

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly these bytes."""
        data = bytearray(count)
        self._image.read_into(offset, memoryview(data))
        return bytes(data)


def facts(header: MapHeader) -> str:
    state = "complete" if header.is_complete else f"NOT COMPLETE: {header.reasons[:3]}"
    return f"{header.reads} reads, {header.bytes_read / MIB:.1f} MiB of metadata, {state}"


def peak_text(peaks: dict[str, int]) -> str:
    return ", ".join(f"{name} {count / MIB:.0f} MiB" for name, count in sorted(peaks.items()))


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# --- in a cluster --------------------------------------------------------------------------------


def map_in_cluster(image: Path, folder: Path, *, has_restore: bool) -> None:
    """Back the image up with real processes, and print what each of them took."""
    cluster = LocalCluster(folder, capacity="64GiB")
    cluster.up()
    try:
        names = ("controller", "disk", "tape", "mover-1")
        with Peaks({cluster.pid(name): name for name in names}).watched() as peaks:
            cluster.ctl("volume", "create", "vol", "--from", str(image), timeout_s=PATIENCE_S)
            image.unlink()
            begun = time.monotonic()
            options = ("--inactivity", "0s", "--wait")
            job = cluster.ctl("submit", "backup", "vol", *options, timeout_s=PATIENCE_S)
            print(f"    backup of {job['total_bytes'] / MIB:.0f} MiB", end=" ")
            print(f"in {time.monotonic() - begun:.0f} s, peaks {peak_text(peaks)}", flush=True)
            ask(cluster)
            if has_restore:
                restore_one(cluster, folder)
        print(f"    peaks after all of it {peak_text(peaks)}", flush=True)
    finally:
        cluster.down()


def ask(cluster: LocalCluster) -> None:
    """Ask for a file, and print what that takes where it is asked."""
    begun = time.monotonic()
    process = cluster.start_ctl("backup", "find", Path(TARGET).name, "--output", "jsonl")
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        rows = process.stdout.read().splitlines()
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    print(
        f"    `ctl backup find` has {len(rows)} in {time.monotonic() - begun:.1f} s, "
        f"peak {used.ru_maxrss * KIB / MIB:.0f} MiB"
    )


def restore_one(cluster: LocalCluster, folder: Path) -> None:
    """Restore one file, and print what its job read."""
    begun = time.monotonic()
    out = ("--out", str(folder / "out"))
    done = cluster.ctl(
        "submit", "restore", "vol/latest", "--path", TARGET, *out, timeout_s=PATIENCE_S
    )
    seconds = time.monotonic() - begun
    job = cluster.ctl("job", "show", str(done["job"]))
    records = sum(device["records_read"] for device in job["ledger"]["devices"])
    locates = sum(locates_of(item) for item in job["items"])
    parts = cluster.ctl("backup", "show", "vol/latest")["parts_detail"]
    print(
        f"    restore of {done['bytes']} bytes in {seconds:.1f} s: {records} of "
        f"{sum(part['records'] for part in parts)} records read "
        f"({job['ledger']['read_bytes'] / MIB:.1f} MiB), {locates} locates"
    )


def locates_of(item: dict[str, Any]) -> int:
    """Count how often a list sends the drive elsewhere."""
    parsed = decode_parameter_list(bytes.fromhex(item["parameter_list"]), limits=MOVER_PARAMETERS)
    return sum(isinstance(segment, Locate) for segment in parsed.segments) if parsed else 0


if __name__ == "__main__":
    sys.exit(main())
