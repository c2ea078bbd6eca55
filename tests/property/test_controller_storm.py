"""The controller's core in foul weather: whatever the order of messages, crashes and calls, everything ends well.

One seed is one story: jobs of every kind are submitted, cancelled and ended by operators while messages are lost,
doubled and late, nodes and movers die, the controller dies, and cartridges fill up.  Then the sun shines until nothing
moves.  What is judged shares no code with the core: blocks on volumes, objects on tapes, and the books.

`--seeds N` plays N stories.
"""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

from backplane.errors import BackupError
from backplane.file_map.selection import Selection
from backplane.ids import NodeName
from controller.core import effects as core
from tests.site import maps
from tests.site.disk import BLOCK
from tests.site.site import Chances, Site, backed_up, content, report, restored
from tests.site.tape import Tape

STEPS = 500
CALLS_MAX = 14
TAGS = ("LTO001L8", "LTO002L8", "LTO003L8", "LTO004L8")
CAUSES = (
    "no progress in",
    "media are needed",
    "within a day",
    "is restore-failed",
    "of the restore has failed: cancelled",
    "is not empty",
    "without writes within",
    "was released",  # a repeated view.create, whose first answer was "not quiet"
    "no file can be put back in place",
    "volume p is in use",
    "does not stay reserved",
    "does not last",  # a map, under a node that restarts and restarts
)
"""Why a job may fail in weather that never damages anything."""


class Story:
    """A site, and what happens to it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.site = Site(drives=1 + seed % 3, tags=TAGS)
        for node in ("disk", "tape"):
            self.site.connect(node)
        for mover in ("m1", "m2"):
            self.site.connect_mover(mover)
        self.backup = backed_up(self.site, content(*range(9)), name="old")
        for number, name in enumerate("abc"):
            last = number * 10 + self.chance.randrange(1, 20)
            self.make_volume(name, list(range(number * 10, last)))
        self.strangers: dict[int, bytes] = {}
        """Blocks of volume p that belong to files that nobody has backed up."""
        self.put_back = self.make_in_place()
        self.spread = self.make_lanes()
        for tag in TAGS[:2]:
            tape = self.site.tapes[tag]
            tape.capacity = len(tape.objects) + self.chance.randrange(2, 40)
            if self.chance.random() < 0.3:
                tape.end = tape.capacity + self.chance.randrange(8)

    def make_volume(self, name: str, lbas: list[int]) -> None:
        """Make a volume with two files and a block that nobody uses; its map has as many pages as rows."""
        files = self.site.make_volume(name, data=content(*lbas)).files
        half = len(lbas) // 2
        files.free = set(lbas[:1])
        files.table = {"drop": tuple(lbas[1:half]), "keep/it": tuple(lbas[half:])}
        files.rows_per_page = 1

    def make_lanes(self) -> int:
        """Back up a volume in two lanes, which a restore reads in two lanes; returns the backup."""
        self.site.machine.stretch_bytes_min = 1
        self.site.make_volume("wide", data=content(*range(24)))
        job = self.site.submit("backup", volume="wide", token="wide", drives=2)
        self.site.run()
        return int(self.site.job(job).backup)

    def make_in_place(self) -> int:
        """Back up a volume with files, and change them; returns the backup."""
        volume = self.site.make_volume("p", data=content(*range(19), *range(20, 30)))
        volume.files.table = {"keep": tuple(range(4, 12)), "lie": tuple(range(12, 20)), "z": (40,)}
        volume.files.rows_per_page = 1
        job = self.site.submit("backup", volume="p", token="p")
        self.site.run()
        self.change_files()
        return int(self.site.job(job).backup)

    def change_files(self) -> None:
        """A workstation writes to the files of p."""
        volume = self.site.disk.by_name("p")
        for lbas in volume.files.table.values():
            volume.write({lba: b"?" * BLOCK for lba in lbas if lba not in self.strangers})

    def move_file(self) -> None:
        """A workstation makes a file of p anew, and gives its old blocks to another file."""
        volume = self.site.disk.by_name("p")
        if "lie" in volume.files.table and volume.files.table["lie"][0] == 12:
            volume.files.table |= {"lie": tuple(range(50, 58)), "other": tuple(range(12, 20))}
            self.strangers = {lba: b"other" + bytes([lba]) * 507 for lba in range(12, 20)}
            volume.write(self.strangers)

    def play(self) -> None:
        """Let the storm blow, and the sun shine after it."""
        self.site.chances = Chances(self.chance, lost=0.05, doubled=0.1, delayed=0.1)
        calls = 0
        for step in range(STEPS):
            if calls < CALLS_MAX and self.chance.random() < 0.06:
                calls += 1
                with contextlib.suppress(BackupError):  # A refusal is an answer.
                    self.call(f"call-{calls}")
            self.happen(step)
        self.site.chances = None
        self.clear_up()

    # --- operators --------------------------------------------------------------------------------

    def call(self, token: str) -> None:
        site, chance = self.site, self.chance
        jobs = list(site.machine.jobs.values())
        kinds = (
            "backup",
            "choose",
            "raw",
            "group",
            "restore",
            "spread",
            "spread",
            "files",
            "in-place",
            "in-place",
            "visit",
            "visit",
            "verify",
            "cancel",
            "cancel",
            "move",
            "write",
        )
        match chance.choice(kinds):
            case "backup":
                no_wait = chance.random() < 0.5
                name = chance.choice("abc")
                site.submit("backup", volume=name, token=token, no_wait_media=no_wait)
            case "choose":
                site.submit("backup", volume=chance.choice("abc"), paths=["keep"], token=token)
            case "raw":
                site.submit("backup", volume=chance.choice("abc"), raw=True, token=token)
            case "group":
                names = chance.sample("abc", chance.choice((2, 3)))
                timeout = chance.choice((4.0, 80.0))
                site.submit("backup", group=names, token=token, sync_timeout_s=timeout)
            case "write":
                volume = site.disk.by_name(chance.choice("abc")).row.volume
                if site.disk.writers.pop(volume, None) is None:
                    site.disk.writers[volume] = "10.0.0.7"
            case "restore":
                site.submit("restore", backup=self.backup, new=token, token=token)
            case "spread":
                drives = chance.choice((0, 1, 2))
                site.submit("restore", backup=self.spread, new=token, token=token, drives=drives)
            case "files":
                paths = [chance.choice(("keep", "lie", "?"))]
                is_staged = chance.random() < 0.5
                site.submit(
                    "restore",
                    backup=self.put_back,
                    new=token,
                    token=token,
                    paths=paths,
                    staging=is_staged,
                )
            case "in-place":
                paths = [chance.choice(("keep", "lie", "*"))]
                site.submit("restore", backup=self.put_back, token=token, paths=paths)
            case "visit":
                self.visit()
            case "verify":
                site.submit("verify", backup=self.backup, token=token)
            case "cancel" if jobs:
                site.begin_call("job.cancel", job=chance.choice(jobs).row.job)
            case _:
                self.move(token)

    def visit(self) -> None:
        """A workstation connects to p and uses it, or goes."""
        disk = self.site.disk
        if disk.by_name("p").row.connections:
            disk.disconnect("p")
            return
        disk.connect("p")
        self.move_file() if self.chance.random() < 0.3 else self.change_files()

    def move(self, token: str) -> None:
        site = self.site
        match self.chance.choice(("import", "export", "end", "end")):
            case "import":
                size = {"size_bytes": 8 * BLOCK, "block_bytes": BLOCK}
                site.begin_call(
                    "volume.import_begin", token=token, name=token, node="", holder="", **size
                )
            case "export":
                name = self.chance.choice("abc")
                site.begin_call("volume.export_begin", token=token, name=name, holder="")
            case _:
                self.end_moves(is_good=self.chance.random() < 0.7)

    def end_moves(self, *, is_good: bool = True) -> None:
        for job in list(self.site.machine.jobs.values()):
            if job.row.kind == "export" and job.row.state == "copying":
                self.site.begin_call("volume.export_end", view=job.row.view)
            if job.row.kind == "import" and job.row.state == "copying":
                name = job.row.volume_name
                self.site.begin_call("volume.import_end", name=name, ok=is_good)

    # --- weather ----------------------------------------------------------------------------------

    def happen(self, step: int) -> None:
        site, roll = self.site, self.chance.random()
        if roll < 0.01:
            site.restart(keeps_wire=self.chance.random() < 0.5)
        elif roll < 0.02:
            site.restart_node(self.chance.choice(("disk", "tape")))
        elif roll < 0.03:
            site.lose_after = [self.chance.randrange(6)]
        elif roll < 0.05:
            mover = self.chance.choice(("m1", "m2"))
            site.connect_mover(mover, boot=bytes([step % 200 + 2]) * 16)
        elif roll < 0.06:
            site.feed(core.PeerLost(name=NodeName("m1"), role="mover"))
            site.connect_mover("m1")
        elif roll < 0.10:
            site.beat()
        elif site.wire and roll < 0.9:
            site.deliver(*site.wire.pop(0))
        else:
            deadline = site.machine.deadline()
            if deadline is not None:
                site.now = max(site.now, deadline)
                site.feed(core.Tick())

    def clear_up(self) -> None:
        site = self.site
        site.disk.writers.clear()
        if site.disk.by_name("p").row.connections:
            site.disk.disconnect("p")
        site.tape.put(Tape("LTO009L8"))  # Whoever waits for a cartridge gets one.
        for node in ("disk", "tape"):
            site.connect(node)
        for mover in list(site.movers):
            site.connect_mover(mover, boot=bytes([250]) * 16)
        for _ in range(40):
            site.run(30)
            site.beat()
            site.settle()
            self.end_moves()
        for node in ("disk", "tape"):
            site.connect(node)
        site.settle()

    # --- judgement --------------------------------------------------------------------------------

    def judge(self) -> None:
        """Nothing is left in hand, nothing is left behind, and what is said to be there is there."""
        site = self.site
        registry = site.machine.registry
        waiting = [(job.row.job, job.row.reason) for job in site.machine.jobs.values()]
        assert not waiting
        assert not site.disk.views
        assert not registry.drive_claims
        assert not registry.volume_claims
        assert site.alarms == []
        self.judge_volumes()
        self.judge_in_place()
        for row in site.catalog.jobs(limit=100):
            self.judge_job(row)
            self.judge_group(row)
        for backup in list(site.machine.backups.values()):
            assert backup.state in ("completed", "failed")
            if backup.backup == self.put_back:
                continue  # Its volume is another one now.
            self.judge_map(backup)
            if backup.state == "completed":
                name = f"copy-of-{backup.backup}"
                assert restored(site, backup.backup, name=name) == self.wanted(backup), backup
        assert site.catalog.load().partial_maps == ()

    def wanted(self, backup: Any) -> dict[int, bytes]:
        """Return what a backup has to bring back, and nothing else."""
        volume = self.site.volumes[backup.volume]
        left_out: set[int] = set()
        if backup.map_state == "complete":
            left_out |= volume.files.free
        if backup.selection:
            left_out |= set(volume.files.table["drop"])
        return {lba: data for lba, data in volume.data.items() if lba not in left_out}

    def judge_map(self, backup: Any) -> None:
        """A backup has its whole map, or nothing of any."""
        pages = [row.packed for row in self.site.catalog.map_pages(backup.backup)]
        if backup.state == "failed" or backup.map_state == "raw":
            assert not pages
            return
        volume = self.site.volumes[backup.volume]
        told = volume.files.map(blocks=volume.row.blocks, block_bytes=BLOCK)
        assert tuple(pages) == told.pages
        assert self.site.catalog.map_header(backup.backup) == told.packed_header

    def judge_volumes(self) -> None:
        rows = self.site.machine.registry.volumes
        for volume in self.site.volumes.values():
            row = rows.get(volume.row.volume)
            assert row is not None, f"{volume.row.name} belongs to nobody"
            assert not row.is_deleted, f"{row.name} is left behind, {volume.row.state}"
            assert volume.row.state in ("online", "restore-failed"), volume.row
        missing = [
            row.name
            for row in rows.values()
            if not row.is_deleted and row.volume not in self.site.volumes
        ]
        assert not missing

    def judge_in_place(self) -> None:
        """Nothing was written that was not proved; what came back came back whole; nobody is kept out any more."""
        volume = self.site.disk.by_name("p")
        old, data = content(*range(30)) | {19: bytes(BLOCK)}, volume.data
        assert not self.site.disk.reserved
        assert {lba: data[lba] for lba in self.strangers} == self.strangers
        for lba in (*range(4), *range(20, 30)):
            assert data[lba] == old[lba], f"LBA {lba} was nobody's to write"
        assert set(data) <= {*range(30), 40, *range(50, 58)}
        for row in self.site.catalog.jobs(limit=100):
            files = json.loads(row.result).get("files", {})
            if row.state != "completed" or json.loads(row.plan).get("way") in (None, "in-place"):
                continue
            copy = self.site.volumes[row.volume].data
            for path, lbas in (("keep", range(4, 12)), ("lie", range(12, 20))):
                if Selection.from_json(json.loads(row.plan)["selection"]).picks(maps.row(path)):
                    assert all(copy.get(lba, bytes(BLOCK)) == old[lba] for lba in lbas)
            assert files["failed"] == 0

    def judge_group(self, row: Any) -> None:
        """All jobs of a group have views of one instant, or none has."""
        jobs = [self.site.job(number) for number in json.loads(row.plan).get("group", [])]
        assert len({self.site.disk.instants.get(job.view) for job in jobs}) <= 1, jobs

    def judge_job(self, row: Any) -> None:
        assert row.exit_code >= 0, row
        states = {item.state for item in self.site.items(row.job)}
        assert not states & {"planned", "leased"}, (row.job, states)
        if row.state == "completed":
            book = report(self.site, row.job)["ledger"]
            assert book["is_balanced"], book
        if row.state == "failed":
            assert any(cause in row.reason for cause in CAUSES), row.reason


def test_after_any_storm_everything_has_ended_and_what_is_completed_reads_back(
    seeds: range,
) -> None:
    for seed in seeds:
        story = Story(seed)
        try:
            story.play()
            story.judge()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
