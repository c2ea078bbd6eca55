"""What a process has given up, as the kernel says it of that process."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from storage_node.mapping import sandbox
from storage_node.mapping.sandbox import NOBODY, python, python_environment
from storage_node.mapping.seccomp import MACHINES

CHILD = """
import json, os, signal, sys
from storage_node.mapping import sandbox

settings = json.loads(sys.argv[1])
os.dup2(0, 60), os.dup2(1, 50)
waits, out = sandbox.keep_only([60, 50])
try:
    missing = sandbox.enter(death_signal=signal.SIGKILL, **settings)
except sandbox.SandboxError as error:
    os.write(out, json.dumps({"refused": str(error)}).encode())
else:
    os.write(out, json.dumps({"missing": missing}).encode())
os.read(waits, 1)
"""
MEMORY = 64 * 1024 * 1024


SERVICE = (
    *("setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"),
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
)
"""Runs a command as a service that has a capability without being root."""


def sandboxed(*, runner: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    """Return what a process says of itself once it has given up everything, and what the kernel says of it."""
    settings = {
        "parent": os.getpid(),
        "memory_bytes": MEMORY,
        "cpu_s": 7,
        "file_bytes": 0,
        "descriptor_count": 2,
        "is_filtered": False,
        **changes,
    }
    command = [*runner, sys.executable, "-c", CHILD, json.dumps(settings)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=python_environment()
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        told = os.read(child.stdout.fileno(), 65536)
        assert told, "it ended before it said anything"
        found: dict[str, Any] = json.loads(told)
        of = Path(f"/proc/{child.pid}")
        found |= {name: (of / name).read_text() for name in ("status", "limits")}
        if os.geteuid() == 0:  # nobody else may look into a process that is not dumpable
            found["network"] = str((of / "ns" / "net").readlink())
            found["open"] = sorted(int(each.name) for each in (of / "fd").iterdir())
        child.stdin.write(b"x")
    assert child.returncode == 0
    return found


def status_of(found: dict[str, Any]) -> dict[str, list[str]]:
    lines = (line.partition(":") for line in found["status"].splitlines())
    return {name: value.split() for name, _, value in lines}


def limits_of(found: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    lines = found["limits"].splitlines()[1:]
    return {line[:26].strip(): tuple(line[26:68].split()) for line in lines}


def test_nobody_stays_root_and_nobody_has_a_capability() -> None:
    status = status_of(sandboxed())
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    assert status["Uid"] == [str(user)] * 4
    if os.geteuid() == 0:
        assert status["Gid"] == [str(NOBODY)] * 4
        assert status["Groups"] == []
    for kind in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert int(status[kind][0], 16) == 0, kind
    assert status["NoNewPrivs"] == ["1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run a command as somebody else")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv here")
def test_a_service_keeps_its_user_and_loses_its_capabilities() -> None:
    found = sandboxed(runner=SERVICE, is_filtered=True)
    status = status_of(found)
    assert status["Uid"] == ["1000"] * 4
    assert int(status["CapEff"][0], 16) == int(status["CapPrm"][0], 16) == 0
    assert found["missing"] == ["a network namespace of its own"]


def test_every_limit_is_set_and_cannot_be_raised() -> None:
    limits = limits_of(sandboxed(file_bytes=1000))
    assert limits["Max cpu time"] == ("7", "7")
    assert limits["Max file size"] == ("1000", "1000")
    assert limits["Max core file size"] == ("0", "0")
    assert limits["Max processes"] == ("0", "0")
    assert limits["Max open files"] == ("5", "5")
    soft, hard = limits["Max address space"]
    assert soft == hard
    assert MEMORY < int(soft) < MEMORY + 4 * 1024**3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into such a process")
def test_only_what_was_given_is_open() -> None:
    assert sandboxed()["open"] == [0, 1, 2, 3, 4]


@pytest.mark.skipif(platform.machine() not in MACHINES, reason="no filter for this machine")
def test_the_filter_is_in_force_where_it_is_wanted() -> None:
    assert status_of(sandboxed())["Seccomp"] == ["0"]
    found = sandboxed(is_filtered=True)
    assert status_of(found)["Seccomp"] == ["2"]
    assert not [each for each in found["missing"] if "filter" in each]


def test_the_network_is_another_one_or_that_is_told() -> None:
    found = sandboxed(is_filtered=True)
    if "a network namespace of its own" not in found["missing"]:
        assert found["network"] != str(Path("/proc/self/ns/net").readlink())


def test_a_process_whose_parent_is_gone_does_not_begin() -> None:
    """It would never get the signal of its parent's end."""
    assert sandboxed(parent=1)["refused"] == "the parent ended before its child began"


def test_every_codec_that_a_reader_uses_is_there_before_the_files_are_out_of_reach() -> None:
    folder = Path(sandbox.__file__).parent
    used = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(r"""(?:code\(|encoding=)"([\w-]+)\"""", path.read_text())
    }
    assert {"cp437", "utf-16-le"} <= used, "or this search is blind"
    assert used <= set(sandbox.CODECS)


def test_the_interpreter_finds_what_we_find() -> None:
    command = [*python("storage_node.mapping.limits")]
    done = subprocess.run(command, env=python_environment(), cwd="/", timeout=60)
    assert done.returncode == 0
    assert python_environment().keys() == {"PYTHONPATH"}
    assert all(Path(path).is_absolute() for path in python_environment()["PYTHONPATH"].split(":"))
