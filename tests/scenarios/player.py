"""Plays transcripts: what an operator does, and what is heard between the controller, its nodes and its movers.

A transcript opens with why it exists.  Then come steps: commands, a line `----`, and what happened.

    backup vol
    run
    ----
    disk <- hold a static view of vol
    ...

Commands:

    volume NAME LBAS             make a volume and write the blocks (`0-3,10`)
    backup NAME [LEVEL] | group NAME NAME ... | restore N NEW | verify N | cancel JOB
    choose NAME PATTERN ...      a backup of the files that match
    raw NAME [LEVEL]             a backup without a map of files
    file NAME PATH LBAS | free NAME LBAS | use NAME LBAS    what a mapper finds: files, and blocks that nobody uses
    unmappable NAME KIND WORDS   a mapper fails (not-found, refused, medium)
    incomplete NAME WORDS        a mapper does not find everything
    set NAME QUIET TIMEOUT       the volume gets a period and a sync timeout of its own, in seconds
    write NAME WRITER | calm NAME    somebody writes to the volume all the time, or not any more
    track NAME HISTORY           the node begins a history of what changes in the volume
    change NAME LBAS | trim NAME LBAS    a workstation writes or gives back blocks
    lie NAME LBAS                blocks change and the node does not notice
    run [SECONDS]                let everything happen until all jobs have ended, or so long
    until WHAT                   let things happen until a list for WHAT (label, data, ...) is with a mover
    step [N]                     let so many messages arrive
    mover NAME                   a mover connects
    die NAME WHAT N              that mover dies in its next list for WHAT, after N tape objects or records
    controller | disk | tape     dies and comes back
    away NAME | back NAME        a node is not heard any more, or again
    warn TAG N                   the cartridge warns from object N on
    damage TAG N                 object N cannot be read any more
    cut TAG N                    the last N objects of a cartridge are gone
    lose                         the catalog is lost: the controller comes back with an empty one
    rebuild [TAG ...]            the catalog is read back from these cartridges, or all
    compare NAME NAME            say whether two volumes are the same
    show jobs | backups | quiet NAME | log JOB | ledger JOB | tape TAG | cartridges
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from backplane.errors import RefusedError, error_from_kind
from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.parameter_list import decode_parameter_list
from backplane.scsi.sense import Sense
from backplane.tape_format import decode_record
from backplane.wire import messages
from controller.core import documents
from controller.core import effects as core
from tests.site.disk import BLOCK
from tests.site.rebuilding import lose_catalog
from tests.site.site import Site, connected, content, ledger

SEPARATOR = "----"


class Player:
    """A site, and what was heard since the last step."""

    def __init__(self) -> None:
        self.site: Site = connected()
        self.heard: list[str] = []
        self._alarms = 0
        self._rounds = 0
        self._jobs: dict[int, tuple[str, str]] = {}
        self._doomed: list[tuple[str, str, int]] = []
        self._deliver = self.site.deliver
        self.site.deliver = self._overhear  # type: ignore[method-assign]
        self.site.before_work = self._before_work

    def play(self, step: str) -> str:
        """Carry out the commands of a step; return what was heard."""
        self.heard = []
        for line in step.splitlines():
            if line and not line.startswith("#"):
                name, *arguments = line.split()
                command: Callable[..., None] = getattr(self, f"do_{name}")
                command(*arguments)
                self._look()
        return "\n".join(self.heard)

    def say(self, text: str) -> None:
        """Note a line of what happens."""
        self.heard.append(text)

    # --- what an operator does --------------------------------------------------------------------

    def do_volume(self, name: str, lbas: str) -> None:
        chosen = blocks_in(lbas)
        heard = list(self.heard)
        self.site.make_volume(name, data=content(*chosen))
        self.heard = [*heard, f"volume {name}: {len(chosen)} blocks are written"]

    def do_drives(self, count: str) -> None:
        site = self.site
        site.tape.put_drives(int(count))
        site.connect("tape")
        site.machine.stretch_bytes_min = 1  # Volumes here are small.
        self.say(f"the tape node has {count} drives")

    def do_backup(self, name: str, level: str = "full", drives: str = "1") -> None:
        try:
            self.site.submit("backup", volume=name, level=level, drives=int(drives))
        except RefusedError as error:
            self.say(f"refused: {error}")

    def do_choose(self, name: str, *patterns: str) -> None:
        self.site.submit("backup", volume=name, paths=list(patterns))

    def do_raw(self, name: str, level: str = "full") -> None:
        self.site.submit("backup", volume=name, raw=True, level=level)

    def do_file(self, name: str, path: str, lbas: str) -> None:
        self.site.disk.by_name(name).files.table[path] = tuple(blocks_in(lbas))

    def do_free(self, name: str, lbas: str) -> None:
        self.site.disk.by_name(name).files.free |= set(blocks_in(lbas))

    def do_use(self, name: str, lbas: str) -> None:
        self.site.disk.by_name(name).files.free -= set(blocks_in(lbas))

    def do_unmappable(self, name: str, kind: str, *words: str) -> None:
        self.site.disk.by_name(name).map_error = error_from_kind(kind, " ".join(words))

    def do_incomplete(self, name: str, *words: str) -> None:
        self.site.disk.by_name(name).files.reasons = (" ".join(words),)

    def do_group(self, *names: str) -> None:
        self.site.submit("backup", group=list(names))

    def do_set(self, name: str, quiet_s: str, timeout_s: str) -> None:
        words = {"quiet_s": float(quiet_s), "sync_timeout_s": float(timeout_s)}
        self.site.begin_call("volume.set", name=name, reset=[], **words)

    def do_write(self, name: str, writer: str) -> None:
        self.site.disk.writers[self.site.disk.by_name(name).row.volume] = writer

    def do_calm(self, name: str) -> None:
        del self.site.disk.writers[self.site.disk.by_name(name).row.volume]

    def do_track(self, name: str, history: str) -> None:
        self.site.disk.by_name(name).track(history)

    def do_change(self, name: str, lbas: str) -> None:
        self._rounds += 1
        block = bytes([self._rounds]) * BLOCK
        self.site.disk.by_name(name).write(dict.fromkeys(blocks_in(lbas), block))

    def do_trim(self, name: str, lbas: str) -> None:
        self.site.disk.by_name(name).trim(*blocks_in(lbas))

    def do_lie(self, name: str, lbas: str) -> None:
        for lba in blocks_in(lbas):
            self.site.disk.by_name(name).data[lba] = b"\xff" * BLOCK

    def do_compare(self, one: str, other: str) -> None:
        is_same = self.site.disk.by_name(one).data == self.site.disk.by_name(other).data
        self.say(f"{one} and {other} {'are the same' if is_same else 'DIFFER'}")

    def do_restore(self, backup: str, name: str, drives: str = "0") -> None:
        self.site.submit("restore", backup=int(backup), new=name, drives=int(drives))

    def do_verify(self, backup: str) -> None:
        self.site.submit("verify", backup=int(backup))

    def do_cancel(self, job: str) -> None:
        self.site.begin_call("job.cancel", job=int(job))

    def do_run(self, seconds: str = "900") -> None:
        site = self.site
        end = site.now + float(seconds)
        site.settle()
        while site.machine.jobs and site.now < end:
            deadline = site.machine.deadline()
            passed = min(end, deadline if deadline is not None else end) - site.now
            site.now += max(0.0, passed)
            if passed >= 1.0:
                self.say(f"... {passed:g} s pass")
            site.feed(core.Tick())
            self._look()
            site.settle()

    def do_until(self, purpose: str) -> None:
        def is_next() -> bool:
            work = self.site.wire[0][1]
            return isinstance(work, core.SendWork) and work.item.purpose == purpose

        while not is_next():
            self.site.deliver(*self.site.wire.pop(0))

    def do_step(self, count: str = "1") -> None:
        for _ in range(int(count)):
            self.site.deliver(*self.site.wire.pop(0))

    def do_mover(self, name: str) -> None:
        self.site.connect_mover(name)

    def do_die(self, name: str, purpose: str, objects: str) -> None:
        self._doomed.append((name, purpose, int(objects)))

    def do_controller(self) -> None:
        self.say("the controller dies and comes back")
        self.site.restart()

    def do_lose(self) -> None:
        self.say("the controller comes back with an empty catalog")
        lose_catalog(self.site)
        self._jobs.clear()
        self._look()

    def do_rebuild(self, *tags: str) -> None:
        token = f"rebuild-{self.site.call_number}"
        asked = {
            "token": token,
            "tags": list(tags),
            "all": not tags,
            "adopt": False,
            "with_pruned": False,
        }
        self.site.call_now("catalog.rebuild", **asked)

    def do_disk(self) -> None:
        self._restart("disk")

    def do_tape(self) -> None:
        self._restart("tape")

    def _restart(self, name: str) -> None:
        self.say(f"{name} dies and comes back")
        self.site.restart_node(name)

    def do_away(self, name: str) -> None:
        self.site.disconnect(name)

    def do_back(self, name: str) -> None:
        self.site.connect(name)

    def do_warn(self, tag: str, number: str) -> None:
        self.site.tapes[tag].capacity = int(number)

    def do_damage(self, tag: str, number: str) -> None:
        self.site.tapes[tag].bad.add(int(number))

    def do_cut(self, tag: str, number: str) -> None:
        tape = self.site.tapes[tag]
        del tape.objects[len(tape.objects) - int(number) :]
        tape.durable = min(tape.durable, len(tape.objects))

    # --- what an operator looks at ----------------------------------------------------------------

    def do_show(self, what: str, *arguments: str) -> None:
        getattr(self, f"_show_{what}")(*arguments)

    def _show_jobs(self) -> None:
        for row in reversed(self.site.catalog.jobs(limit=100)):
            reason = f": {row.reason}" if row.reason else ""
            self.say(f"job {row.job} {row.kind} of {row.subject}: {row.state}{reason}")
            self.say(
                f"    exit code {row.exit_code}, {row.done_bytes} of {row.planned_bytes} bytes"
            )

    def _show_backups(self) -> None:
        for row in self.site.machine.backups.values():
            told = documents.backup_document(
                row, self.site.machine.registry, self.site.machine.backups
            )
            chain = ", ".join(str(number) for number in told["chain"])
            kind = f"{row.level}, chosen files" if row.selection else row.level
            size = f"{row.stream_bytes} bytes"
            self.say(f"backup {row.backup}: {kind}, {size}, {row.state}, map {row.map_state}")
            needs = told["broken"] or f"needs {', '.join(told['needs'])}"
            self.say(f"    chain {chain}; {needs}")

    def _show_quiet(self, name: str) -> None:
        volume = self.site.disk.by_name(name).row.volume
        for wait in reversed(self.site.catalog.quiet_waits(volume, limit=100)):
            found = "found quiet" if wait.is_found else "found no quiet"
            writer = f", {wait.writer} wrote last" if wait.writer else ""
            self.say(f"{name}: job {wait.job} {found} after {wait.waited_s:g} s{writer}")

    def _show_log(self, job: str) -> None:
        for text in self.site.log(int(job)):
            self.say(f"    {text}")

    def _show_ledger(self, job: str) -> None:
        book = ledger(self.site, int(job))
        names = ("planned", "read", "written", "padded", "discarded", "observed", "repeated")
        told = ", ".join(f"{name} {book[f'{name}_bytes']}" for name in (*names, "residual"))
        self.say(f"ledger of job {job}: {told}")
        self.say(f"    {'balanced' if book['is_balanced'] else 'NOT BALANCED'}")
        result = json.loads(self.site.job(int(job)).result)
        for entry in result.get("damage", []):
            extents = ", ".join(f"{lba}+{count}" for lba, count in entry["extents"])
            self.say(f"    damaged: {entry['tag']} object {entry['object']}: LBA {extents}")

    def _show_cartridges(self) -> None:
        for row in self.site.machine.registry.cartridges.values():
            detail = f" ({row.detail})" if row.detail else ""
            self.say(f"{row.tag} {row.status}{detail}, {row.sequence} parts, ends at {row.end}")

    def _show_tape(self, tag: str) -> None:
        for number, item in enumerate(self.site.tapes[tag].objects):
            self.say(f"    {number:3} {object_in_words(item)}")

    # --- what is overheard ------------------------------------------------------------------------

    def _before_work(self, work: core.SendWork) -> None:
        for doom in self._doomed:
            name, purpose, objects = doom
            if (name, purpose) == (work.mover, work.item.purpose):
                self._doomed.remove(doom)
                self.site.lose_after = [objects]
                self.say(f"{name} dies after {objects} objects")
                return

    def _overhear(self, target: str, message: Any) -> None:
        told = message.message if isinstance(message, core.FromPeer) else message
        words = self._words(told)
        if words:
            arrow = f"{message.name} ->" if target == "->" else f"{target} <-"
            is_heard = target == "->" or target not in self.site.away
            lost = "" if is_heard else "   (not heard)"
            self.say(f"{arrow} {words}{lost}")
        self._deliver(target, message)
        self._look()

    def _look(self) -> None:
        """Note new alarms, and jobs that have changed."""
        for alarm in self.site.alarms[self._alarms :]:
            self.say(f"ALARM {alarm}")
        self._alarms = len(self.site.alarms)
        for row in reversed(self.site.catalog.jobs(limit=100)):
            job = self.site.machine.jobs.get(row.job)
            now = (row.state, row.reason if job is None else job.row.reason)
            if self._jobs.get(row.job) != now:
                self._jobs[row.job] = now
                state, reason = now
                self.say(f"job {row.job} is {state}{f': {reason}' if reason else ''}")

    def _words(self, message: Any) -> str:
        match message:
            case core.SendWork():
                return self._work_in_words(message)
            case messages.WorkDone():
                sense = Sense.decode(message.sense).describe() if message.sense else "done"
                return f"item {message.item}: {sense}"
            case messages.WorkRevoked():
                return f"stop item {message.item}: {message.reason}"
            case messages.NodeFailed():
                return f"refused: {message.reason}"
            case messages.NodeReply() if message.drives:
                return f"loaded, the tape ends at object {message.end}"
            case messages.UnitFence():
                lane = f"lane {message.lane} of " if message.lane else ""
                return f"fence {lane}{self._unit(message.designator)} at {message.epoch}"
            case messages.TapeLoad():
                return f"load {message.tag} into {message.drive}, fence at {message.epoch}"
            case messages.TapeMetadata():
                return f"read metadata from object {message.start} on"
            case messages.TapeDigest():
                return f"checksums of objects {message.start} to {message.end - 1}"
            case messages.ViewCreate():
                others = [self._volume(member.volume) for member in message.group]
                names = " and ".join([self._volume(message.volume), *others])
                return f"hold a static view of {names}"
            case messages.ViewWaiting():
                return f"not quiet for {message.waited_s:g} s, {message.last_writer} writes"
            case messages.ViewExtents() if message.tracking:
                since = f"generation {message.since_generation} of {message.tracking}"
                return f"list what has changed since {since}"
            case messages.ViewSample():
                return f"read {len(message.extents) // 16} samples of the view"
            case messages.ViewExtents():
                return "list the extents of the view"
            case messages.ViewMap():
                return "map the files of the view"
            case messages.ViewMapPage():
                return f"send page {message.page} of the map"
            case messages.ViewNarrow():
                return f"protect {len(message.extents) // 16} extents of the view and no more"
            case messages.ViewRelease():
                return "release the view"
            case messages.VolumeCreate():
                return f"create volume {message.name}"
            case messages.VolumeOffline():
                return f"take {self._volume(message.volume)} offline, fence at {message.epoch}"
            case messages.VolumePublish():
                name = self._volume(message.volume)
                return f"publish {name} as {message.state}, fence at {message.epoch}"
            case _:
                return ""

    def _work_in_words(self, work: core.SendWork) -> str:
        data = work.item.parameter_list
        parsed = decode_parameter_list(data, limits=MOVER_PARAMETERS)
        assert parsed is not None
        codes = " ".join(f"{segment.CODE:02X}h" for segment in parsed.segments)
        position = [use.position for use in work.uses if use.node == "tape"]
        where = f" from object {position[0]}" if position[0] else ""
        return (
            f"item {work.item.item}, epoch {work.item.epoch}: {work.item.purpose}{where}, {codes}"
        )

    def _unit(self, designator: bytes) -> str:
        for drive in self.site.tape.drives.values():
            if drive.unit == designator:
                return drive.name
        for view in self.site.disk.views.values():
            if view.designator == designator:
                return "the view"
        return next(
            v.row.name for v in self.site.volumes.values() if v.row.designator == designator
        )

    def _volume(self, volume: str) -> str:
        return next(
            row.name for row in self.site.machine.registry.volumes.values() if row.volume == volume
        )


def blocks_in(lbas: str) -> list[int]:
    """Return the blocks of a list such as `0-3,10`."""
    chosen: list[int] = []
    for part in lbas.split(","):
        first, _, last = part.partition("-")
        chosen += range(int(first), int(last or first) + 1)
    return chosen


def object_in_words(item: bytes | None) -> str:
    """Say what stands on a tape."""
    if item is None:
        return "filemark"
    if item.startswith(b"VOL1"):
        return "VOL1 label"
    if item.startswith(b"SDVMETA"):
        return decode_record(item).type.name.lower().replace("_", " ")
    return f"data, {len(item)} bytes"


def steps_of(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Divide a transcript into its opening and its steps: (commands, what happened)."""
    opening, *parts = text.rstrip("\n").split("\n\n")
    steps = []
    for part in parts:
        commands, _, heard = part.partition(f"\n{SEPARATOR}")
        steps.append((commands, heard.strip("\n")))
    return opening, steps


def written(opening: str, steps: list[tuple[str, str]]) -> str:
    """Return the text of a transcript."""
    parts = [opening]
    for commands, heard in steps:
        parts.append(f"{commands}\n{SEPARATOR}" + (f"\n{heard}" if heard else ""))
    return "\n\n".join(parts) + "\n"
