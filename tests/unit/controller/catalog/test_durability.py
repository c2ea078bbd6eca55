"""What was acknowledged survives SIGKILL at any moment, and a transaction is never seen in part.

A driver process, which has loaded everything once, forks a child per round.  The child opens the catalog, commits
pairs of rows, number after number, and acknowledges each on a pipe.  The driver kills it after a random time, in some
rounds while it still opens or creates the catalog, then opens the catalog and reports the last acknowledged number
and what it found.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from controller.catalog.sql import SqlCatalog

ROUNDS = 25
DRIVER = """
import json, os, random, signal, sys, time
from controller.catalog.sql import SqlCatalog
from controller.catalog.store import CounterRow, EventRow

path, rounds = sys.argv[1], int(sys.argv[2])

def commit_and_acknowledge(pipe):
    catalog = SqlCatalog.open(path)
    number = catalog.load().counters.get("request", 0)
    while True:
        number += 1
        event = EventRow(job=1, sequence=number, time="", level="info", text="x" * (number * 977 % 20_000))
        catalog.commit([event, CounterRow(name="request", value=number)])
        os.write(pipe, number.to_bytes(8, "big"))

def acknowledged(pipe):
    with os.fdopen(pipe, "rb") as file:
        return int.from_bytes(file.read()[-8:], "big")

longest_s = 0.06
for _ in range(rounds):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        commit_and_acknowledge(writer)
    os.close(writer)
    time.sleep(random.uniform(0, longest_s))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = acknowledged(reader)
    if not told:
        longest_s = min(2.0, longest_s * 1.5)  # a busy machine: give the next one longer
    catalog = SqlCatalog.open(path)
    found = catalog.load().counters.get("request", 0)
    events = [event.sequence for event in catalog.events(1, after=0, limit=10**9)]
    catalog.close()
    print(json.dumps({"acknowledged": told, "found": found, "events": len(events), "last": max(events, default=0)}))
"""


def test_every_acknowledged_commit_is_found_after_a_kill_and_none_in_part(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRIVER, tmp_path / "catalog", str(ROUNDS)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == ROUNDS
    before = 0
    for report in reports:
        # One commit may have been durable without its acknowledgement.
        assert max(before, report["acknowledged"]) <= report["found"], report
        assert report["found"] <= max(before, report["acknowledged"]) + 1, report
        assert report["events"] == report["last"] == report["found"], report
        before = report["found"]
    assert before > ROUNDS, "the children hardly committed anything"


SYNCER = """
import os, sys
from backplane.errors import BackupError
from controller.catalog.sql import SqlCatalog
from controller.catalog.store import CounterRow

catalog = SqlCatalog.open(sys.argv[1])
for attempt in range(1, 30):
    try:
        catalog.commit([CounterRow(name="request", value=attempt)])
        print("acknowledged", attempt, flush=True)
    except BackupError as error:
        print("refused", error, flush=True)
os._exit(0)
"""


def test_a_failed_sync_is_never_tried_again(tmp_path: Path) -> None:
    """The kernel reports a lost page once; a second sync would succeed and mean nothing."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    log, path = tmp_path / "calls", tmp_path / "catalog"
    inject = "inject=fsync,fdatasync:error=EIO:when=20+"
    traced = [strace, "-f", "-qq", "-o", log, "-e", "trace=fsync,fdatasync", "-e", inject]
    done = subprocess.run(
        [*traced, sys.executable, "-c", SYNCER, path], capture_output=True, text=True, timeout=60
    )
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    acknowledged = [line for line in lines if line.startswith("acknowledged")]
    refused = lines[len(acknowledged) :]
    assert acknowledged
    assert len(acknowledged) + len(refused) == 29
    assert "I/O error" in refused[0]
    assert all("not used any more" in line for line in refused[1:])
    assert log.read_text().count("EIO") == 1, "a sync was tried again"
    with closing(SqlCatalog.open(path)) as catalog:
        found = catalog.load().counters["request"]
    assert len(acknowledged) <= found <= len(acknowledged) + 1
