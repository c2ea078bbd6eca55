"""The filter of system calls: interpreted here as the kernel does, and in force in a process of its own."""

from __future__ import annotations

import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from storage_node.mapping import seccomp
from storage_node.mapping.seccomp import MACHINES, Machine, program

ALLOW = 0x7FFF0000
REFUSE = 0x00050001
"""SECCOMP_RET_ERRNO with EPERM."""

CALLS = range(700)
X32 = 0x40000000
"""Bit of the calls of another ABI of x86-64."""


def verdict(text: bytes, *, number: int, audit: int) -> int:
    """Run a filter over `struct seccomp_data`."""
    lines = list(struct.iter_unpack("=HBBI", text))
    data = struct.pack("=iIQ6Q", number, audit, 0, *[0] * 6)
    accumulator = at = 0
    for _ in range(len(lines) + 1):
        code, if_true, if_false, operand = lines[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif code == 0x15:
            at += if_true if accumulator == operand else if_false
        else:
            assert code == 0x06
            return int(operand)
    raise AssertionError("it does not end")


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES.keys())
def test_exactly_the_listed_calls_are_allowed(machine: Machine) -> None:
    text = program(machine)
    allowed = {n for n in CALLS if verdict(text, number=n, audit=machine.audit) == ALLOW}
    assert allowed == set(machine.calls.values())
    refused = set(CALLS) - allowed
    assert {verdict(text, number=n, audit=machine.audit) for n in refused} == {REFUSE}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES.keys())
def test_numbers_of_another_architecture_mean_something_else_and_are_refused(
    machine: Machine,
) -> None:
    text = program(machine)
    for audit in (0, 0x40000003, machine.audit ^ 1):
        assert {verdict(text, number=n, audit=audit) for n in CALLS} == {REFUSE}
    for number in machine.calls.values():
        assert verdict(text, number=number | X32, audit=machine.audit) == REFUSE


def test_both_machines_allow_the_same() -> None:
    """What one has and the other has not is named, so that a number was not forgotten."""
    x86, arm = (set(MACHINES[name].calls) for name in ("x86_64", "aarch64"))
    assert x86 - arm == {"poll"}, "aarch64 has only ppoll"
    assert arm - x86 == set()


@pytest.mark.parametrize(
    "dangerous", ["open", "socket", "execve", "fork", "clone", "kill", "ptrace"]
)
def test_nothing_that_reaches_outside_is_allowed(dangerous: str) -> None:
    for machine in MACHINES.values():
        assert not [name for name in machine.calls if name.startswith(dangerous)]


HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_numbers_are_those_of_the_kernel(name: str) -> None:
    header = Path(HEADERS[name])
    if not header.exists():
        pytest.skip(f"no kernel headers: {header}")
    numbers = {}
    for line in header.read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "#define" and words[2].isdigit():
            numbers[words[1]] = int(words[2])
    for call, number in MACHINES[name].calls.items():
        found = numbers.get(f"__NR_{call}", numbers.get(f"__NR3264_{call}"))
        assert found == number, call


CHILD = """
import ctypes, os, sys
sys.path[:] = sys.argv[1:]
from storage_node.mapping import seccomp
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
seccomp.restrict()
os.write(1, b"before ")
try:
    os.open("/dev/null", 0)
except PermissionError:
    os.write(1, b"refused")
"""


@pytest.mark.skipif(platform.machine() not in MACHINES, reason="no filter for this machine")
def test_a_process_under_the_filter_writes_and_opens_nothing() -> None:
    command = [sys.executable, "-c", CHILD, *sys.path]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.stdout == b"before refused", done.stderr


def test_a_machine_without_a_filter_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(OSError, match="no filter for vax"):
        seccomp.restrict()
