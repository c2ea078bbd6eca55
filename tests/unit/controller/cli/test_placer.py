"""The conversation with `storage-node place`: a script in its place says what it would, and what it never should."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backplane.file_map.model import FileRow, Identity, Kind
from controller.cli.placer import NAME_BYTES_MAX, Placer, PlacerLostError, Refusal, temporary_name

ECHO = """
import json, sys
asked = open(sys.argv[1], "w")
for line in sys.stdin:
    asked.write(line); asked.flush()
    {body}
"""
FILE = FileRow(
    path=b"home/a",
    kind=Kind.FILE,
    size=5,
    mode=0o104755,
    uid=3,
    gid=4,
    mtime_ns=11,
    atime_ns=12,
    ctime_ns=0,
    birth_ns=0,
    links=1,
    identity=Identity(0, 1, 0),
    xattrs=((b"user.x", b"\xff"),),
)
Talks = Callable[..., Placer]


@pytest.fixture
def talks(tmp_path: Path) -> Talks:
    """Return a function that begins to talk to a script; the body is what it does with each line."""

    def begin(body: str, **options: Any) -> Placer:
        def start(command: list[str], **arguments: Any) -> subprocess.Popen[bytes]:
            assert command[1:4] == ["-m", "storage_node", "place"]
            assert command[-2:] == ["--folder", str(tmp_path)]
            assert arguments["start_new_session"], "a terminal's Ctrl-C is not for it"
            script = [sys.executable, "-c", ECHO.format(body=body), str(tmp_path / "asked")]
            return subprocess.Popen(script, **arguments)

        return Placer(tmp_path, start=start, **options)

    return begin


def asked(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]


def say(**document: Any) -> str:
    return f"print({json.dumps(document)!r}, flush=True)"


def test_everything_is_said_and_every_answer_understood(talks: Talks, tmp_path: Path) -> None:
    answer = say(ok=True, digest="d", path="p/x", attributes_lost=2)
    with talks(answer) as placer:
        assert placer.prepare(b"x\xff.restoring", 5) == ("d", "p/x")
        placer.expose()
        exposed = [placer.is_exposed]
        placer.fenced()
        assert [*exposed, placer.is_exposed] == [True, False]
        assert placer.verify(b"x.restoring", FILE, digest="d", crc=9) == 2
        placer.abandon(b"x.restoring")
        assert placer.trouble() == ""
    told = asked(tmp_path)
    assert [each["op"] for each in told] == ["prepare", "expose", "fenced", "verify", "abandon"]
    assert told[0]["temporary"].encode(errors="surrogateescape") == b"x\xff.restoring"
    verify = told[3]
    assert (verify["name"], verify["mode"], verify["uid"], verify["gid"]) == ("a", 0o4755, 3, 4)
    assert (verify["mtime_ns"], verify["atime_ns"]) == (11, 12)
    assert verify["xattrs"] == [["dXNlci54", "/w=="]]


def test_a_refusal_is_told_and_the_conversation_goes_on(talks: Talks) -> None:
    with talks(say(ok=False, reason="it is btrfs")) as placer:
        for _ in range(2):
            with pytest.raises(Refusal, match="it is btrfs"):
                placer.prepare(b"x", 1)


def test_a_broken_lease_is_heard_between_answers_and_unasked(talks: Talks) -> None:
    broken = say(event="broken", temporary="x.restoring")
    with talks(f"{broken}; {say(ok=True)}") as placer:
        assert placer.trouble() == ""
        placer.abandon(b"x")
        assert placer.trouble() == "somebody else has opened x.restoring"
    with talks(f"{say(ok=True)}; {broken}") as placer:
        placer.abandon(b"x")
        while not placer.trouble():
            pass
        assert "x.restoring" in placer.trouble()


def test_the_death_of_the_process_is_noticed_however_it_is_met(talks: Talks) -> None:
    with talks("sys.exit()") as placer:
        with pytest.raises(PlacerLostError):
            placer.abandon(b"x")
        assert "has ended" in placer.trouble()
        with pytest.raises(PlacerLostError):
            placer.fenced()
    with talks(f"{say(ok=True)}; sys.exit()") as placer:
        placer.abandon(b"x")
        while not placer.trouble():
            pass
        assert "nobody holds" in placer.trouble()


def test_a_process_that_may_be_holding_what_movers_write_is_not_waited_for(talks: Talks) -> None:
    body = f"{say(ok=True)}\nimport time; time.sleep(0.5)"
    with talks(body) as placer:
        placer.expose()
        process = placer._process
    assert process.pid == placer.pid
    process.returncode = None
    process.wait()


def test_a_temporary_name_is_beside_its_file_fits_and_is_nobody_elses() -> None:
    first = temporary_name(b"home/a.iso", mark="m1")
    assert first.startswith(b"home/a.iso.m1-")
    assert first.endswith(b".restoring")
    others = {temporary_name(path, mark="m1") for path in (b"home/b.iso", b"a.iso", b"etc/a.iso")}
    assert len({*others, first, temporary_name(b"home/a.iso", mark="m2")}) == 5
    assert len({name.rpartition(b"/")[2] for name in (*others, first)}) == 4
    long = temporary_name(b"x/" + b"n" * NAME_BYTES_MAX, mark="m" * 32)
    assert len(long.partition(b"/")[2]) == NAME_BYTES_MAX
