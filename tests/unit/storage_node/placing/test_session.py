"""A placement as a conversation: what is asked, what is answered, and what is left when it ends."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from backplane.crc import crc32c
from backplane.units import MIB
from storage_node.placing.session import FILES_MAX, LINE_BYTES_MAX

SIZE = MIB + 1
FACTS: dict[str, Any] = {
    "op": "verify",
    "size": SIZE,
    "crc32c": crc32c(bytes(SIZE)),
    "mode": 0o600,
    "uid": -1,
    "gid": -1,
    "mtime_ns": 10**18,
    "atime_ns": 10**18,
    "xattrs": [],
}
TIMEOUT_S = 60


class Talk:
    """A process that prepares files below a folder."""

    def __init__(self, folder: Path, *, hold_s: float = 0.0) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "storage_node", "place"),
                *("--folder", str(folder), "--hold", str(hold_s)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def say(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, **asked: Any) -> dict[str, Any]:
        self.say(json.dumps(asked).encode())
        return self.hear()

    def prepared(self, temporary: str) -> str:
        answer = self.ask(op="prepare", temporary=temporary, size=SIZE)
        assert answer["ok"], answer
        return str(answer["digest"])

    def refusal(self, **asked: Any) -> str:
        answer = self.ask(**asked)
        assert not answer["ok"]
        return str(answer["reason"])

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, said.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT_S)


@pytest.fixture
def talk(folder: int, tmp_path: Path) -> Iterator[Talk]:
    with Talk(tmp_path) as made:
        yield made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_prepared_exposed_verified_and_named(talk: Talk, tmp_path: Path) -> None:
    answer = talk.ask(op="prepare", temporary="a.restoring", size=SIZE)
    assert sum(count for _, _, count in answer["extents"]) >= SIZE
    assert str(tmp_path / "a.restoring").endswith(answer["path"])
    assert talk.ask(op="expose") == {"ok": True}
    assert talk.ask(op="fenced") == {"ok": True}
    xattrs = [[base64.b64encode(b"user.x").decode(), base64.b64encode(b"\xff").decode()]]
    asked = FACTS | {"temporary": "a.restoring", "name": "a", "xattrs": xattrs}
    verified = talk.ask(**asked, digest=answer["digest"])
    assert verified["ok"]
    assert talk.end() == (0, "")
    assert names(tmp_path) == ["a"]
    assert len(os.listxattr(tmp_path / "a")) + verified["attributes_lost"] == 1


def test_what_was_not_verified_is_gone_when_the_caller_is(talk: Talk, tmp_path: Path) -> None:
    talk.prepared("a.restoring")
    talk.prepared("b.restoring")
    assert talk.ask(op="abandon", temporary="b.restoring") == {"ok": True}
    assert names(tmp_path) == ["a.restoring"]
    assert talk.end() == (0, "")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_was_not_verified_is_gone_after_a_signal(
    talk: Talk, tmp_path: Path, number: signal.Signals
) -> None:
    talk.prepared("a.restoring")
    talk.process.send_signal(number)
    assert talk.process.wait(TIMEOUT_S) == 0
    assert names(tmp_path) == []


def test_a_file_that_could_not_be_verified_is_held_until_it_is_abandoned(
    talk: Talk, tmp_path: Path
) -> None:
    digest = talk.prepared("a.restoring")
    asked = FACTS | {"temporary": "a.restoring", "name": "a", "digest": digest}
    assert "CRC32C" in talk.refusal(**asked | {"crc32c": 1})
    assert names(tmp_path) == ["a.restoring"]
    assert talk.ask(op="abandon", temporary="a.restoring") == {"ok": True}
    assert names(tmp_path) == []


def test_blocks_that_a_mover_may_be_writing_are_not_given_back(talk: Talk, tmp_path: Path) -> None:
    talk.prepared("a.restoring")
    talk.ask(op="expose")
    assert "movers may be writing" in talk.refusal(op="abandon", temporary="a.restoring")
    assert names(tmp_path) == ["a.restoring"]
    talk.ask(op="fenced")
    assert talk.ask(op="abandon", temporary="a.restoring") == {"ok": True}


@pytest.mark.parametrize("ending", ["caller", "signal", "nonsense"])
def test_exposed_files_outlive_the_caller_for_as_long_as_movers_may_write(
    folder: int, tmp_path: Path, ending: str
) -> None:
    with Talk(tmp_path, hold_s=3600) as talk:
        talk.prepared("a.restoring")
        talk.ask(op="expose")
        talk.prepared("b.restoring")  # nobody was told of this one
        assert talk.process.stdin is not None
        if ending == "caller":
            talk.process.stdin.close()
        elif ending == "signal":
            talk.process.send_signal(signal.SIGTERM)
        else:
            talk.process.stdin.write(b"x" * (LINE_BYTES_MAX + 65536 + 1))
            talk.process.stdin.flush()
        while names(tmp_path) != ["a.restoring"]:
            assert talk.process.poll() is None
        talk.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            talk.process.wait(0.5)
        assert names(tmp_path) == ["a.restoring"]
        with pytest.raises(BlockingIOError):
            os.open(tmp_path / "a.restoring", os.O_RDONLY | os.O_NONBLOCK)
        talk.process.stdin.close()
        talk.process.stdin = None


def test_exposed_files_go_when_movers_cannot_write_any_more(folder: int, tmp_path: Path) -> None:
    with Talk(tmp_path, hold_s=0.2) as talk:
        talk.prepared("a.restoring")
        talk.ask(op="expose")
        assert talk.end() == (0, "")
    assert names(tmp_path) == []


def test_a_broken_lease_is_told_at_once_and_the_blocks_stay(talk: Talk, tmp_path: Path) -> None:
    digest = talk.prepared("a.restoring")
    talk.ask(op="expose")
    path = tmp_path / "a.restoring"
    with subprocess.Popen([sys.executable, "-c", f"open({str(path)!r}).close()"]) as process:
        assert talk.hear() == {"event": "broken", "temporary": "a.restoring"}
        asked = FACTS | {"temporary": "a.restoring", "name": "a", "digest": digest}
        assert "lease is gone" in talk.refusal(**asked)
        assert process.poll() is None, "he has to wait until the movers were fenced"
        talk.ask(op="fenced")
        talk.ask(op="abandon", temporary="a.restoring")
    assert process.returncode == 0
    assert names(tmp_path) == []


def test_a_file_that_exists_is_refused_by_name(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    assert talk.refusal(op="prepare", temporary="a", size=SIZE) == "File exists"
    digest = talk.prepared("b")
    asked = FACTS | {"temporary": "b", "name": "a", "digest": digest}
    assert talk.refusal(**asked) == "File exists"
    assert talk.end() == (0, "")
    assert (tmp_path / "a").read_text() == "mine"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("needs /dev/shm, a tmpfs")
    with Talk(Path("/dev/shm")) as talk:
        assert "tmpfs" in talk.refusal(op="prepare", temporary="sb-never-made", size=SIZE)
        assert talk.end() == (0, "")
    with Talk(tmp_path / "nowhere") as talk:
        code, said = talk.end()
        assert code == 1
        assert "No such file" in said


NONSENSE = (
    (b"{", "no JSON"),
    (b"[" * 100_000, "no JSON"),
    (b"[]", "no JSON object"),
    (b'{"op": "erase"}', "nothing is called 'erase'"),
    (b'{"op": "prepare"}', "temporary has to be text"),
    (b'{"op": "prepare", "temporary": "\\ud800", "size": 1}', "temporary is no path"),
    (b'{"op": "prepare", "temporary": "../x", "size": 1}', "none that can be made"),
    (b'{"op": "prepare", "temporary": "x", "size": "1"}', "size has to be a number"),
    (b'{"op": "prepare", "temporary": "x", "size": true}', "size has to be a number"),
    (b'{"op": "prepare", "temporary": "x", "size": -1}', "size has to be a number"),
    (b'{"op": "prepare", "temporary": "x", "size": 1e400}', "size has to be a number"),
    (b'{"op": "abandon", "temporary": "x"}', "no such file"),
)


def test_nonsense_is_answered_and_the_conversation_goes_on(talk: Talk) -> None:
    for line, words in NONSENSE:
        talk.say(line)
        assert words in talk.hear()["reason"], line
    assert talk.ask(op="expose") == {"ok": True}
    assert talk.end() == (0, "")


CHANGES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"name": "x/y"}, "a name is no path"),
    ({"name": ".."}, "a name is no path"),
    ({"digest": "0"}, "digest is none of this file"),
    ({"uid": -2}, "uid has to be a number"),
    ({"xattrs": {}}, "list of pairs"),
    ({"xattrs": [["?", "?"]]}, "in base64"),
    ({"xattrs": [[1]]}, "in base64"),
    ({"xattrs": [["", ""]] * 257}, "list of pairs"),
)


def test_a_verification_that_makes_no_sense_touches_nothing(talk: Talk, tmp_path: Path) -> None:
    digest = talk.prepared("a.restoring")
    asked = FACTS | {"temporary": "a.restoring", "name": "a", "digest": digest}
    for change, words in CHANGES:
        assert words in talk.refusal(**asked | change)
        assert (tmp_path / "a.restoring").stat().st_size > SIZE
    assert talk.ask(**asked)["ok"]
    assert names(tmp_path) == ["a"]


def test_a_file_is_prepared_once_and_no_more_than_can_be_held(talk: Talk, tmp_path: Path) -> None:
    digest = talk.prepared("0")
    assert "prepared already" in talk.refusal(op="prepare", temporary="0", size=SIZE)
    for number in range(1, FILES_MAX):
        assert talk.ask(op="prepare", temporary=str(number), size=1)["ok"]
    assert "at most" in talk.refusal(op="prepare", temporary="more", size=1)
    asked = FACTS | {"temporary": "0", "name": "a", "digest": digest}
    assert talk.ask(**asked)["ok"]
    assert talk.ask(op="prepare", temporary="more", size=1)["ok"]
    assert talk.end() == (0, "")
    assert names(tmp_path) == ["a"]
