"""What a process of a mapping gives up before it looks at anything that a volume says.

The parser reads bytes that anybody may have written, in about every format that there is.  Whoever takes it over has:
no root and no capabilities, two sockets and no other open file nor a way to open one, no network, no child processes,
bounded memory and processor time, and an end that comes with its parent's.  The builder gives up the same, except that
it may write the two files that it was given.

Some of that is not to be had everywhere: containers forbid new network namespaces, and not every processor has a
filter of system calls here.  What is missing is told to the node, which logs it.  Root that cannot be given up is
another matter: then nothing is parsed.
"""

from __future__ import annotations

import codecs
import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from backplane import crc
from storage_node.mapping import seccomp

NOBODY: Final = 65534
"""User and group that own nothing: the kernel's own overflow ids, and `nobody` on every Linux."""

NICENESS: Final = 5
"""Workstations and movers come first."""

PARSER: Final = "storage_node.mapping.parser_process"
BUILDER: Final = "storage_node.mapping.builder_process"
"""The modules that run in processes of their own.  The node names them and does not load them: the parser has all the
readers of file systems with it."""

FIRST_DESCRIPTOR: Final = 3
"""Behind standard input, output and error, which are /dev/null or the node's log."""

CODECS: Final = ("ascii", "latin-1", "cp437", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le")
"""The interpreter imports a codec when it is first needed, and later there is nothing that could be imported."""

DESCRIPTORS_CLOSED: Final = 4096
"""Up to here.  The children inherit what they are given and nothing else, so this finds nothing."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CLONE_NEWNET: Final = 0x40000000
_CAPABILITY_VERSION: Final = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(Exception):
    """Something that has to be given up could not be."""


def keep_only(descriptors: Sequence[int]) -> list[int]:
    """Close all other files and sockets but the standard ones; return the new numbers, from 3 on, of those kept."""
    base = max(*descriptors, FIRST_DESCRIPTOR + len(descriptors)) + 1
    high = [os.dup2(descriptor, base + at) for at, descriptor in enumerate(descriptors)]
    os.closerange(FIRST_DESCRIPTOR, base)
    kept = [os.dup2(descriptor, FIRST_DESCRIPTOR + at) for at, descriptor in enumerate(high)]
    os.closerange(FIRST_DESCRIPTOR + len(descriptors), DESCRIPTORS_CLOSED)
    return kept


def enter(
    *,
    parent: int,
    death_signal: signal.Signals,
    memory_bytes: int,
    cpu_s: int,
    file_bytes: int,
    descriptor_count: int,
    is_filtered: bool,
) -> list[str]:
    """Give up everything; return in words what could not be had.  Raises `SandboxError` if root stays."""
    missing = []
    # What is loaded when it is first used must be there already: no file is opened from here on.
    crc.load()
    for name in CODECS:
        codecs.lookup(name)
    used_bytes = _address_space_bytes()
    os.chdir("/")
    os.umask(0o077)
    os.nice(NICENESS)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if is_filtered and _libc.unshare(_CLONE_NEWNET):
        missing.append("a network namespace of its own")
    _drop_root()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    # Not before the change of user, which takes it back.
    _prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        raise SandboxError("the parent ended before its child began")
    _limit(used_bytes + memory_bytes, cpu_s, file_bytes, descriptor_count)
    gc.collect()
    gc.freeze()
    if is_filtered:
        try:
            seccomp.restrict()
        except OSError as error:
            missing.append(f"a filter of system calls ({error.strerror})")
    return missing


def _drop_root() -> None:
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError as error:
        raise SandboxError(f"root cannot be given up: {error.strerror}") from error
    if 0 in os.getresuid() or 0 in os.getresgid():
        raise SandboxError("root was not given up")
    # A service may have capabilities without being root.  None permitted: none can be taken up again.
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, none):
        raise SandboxError(f"capabilities stay: {os.strerror(ctypes.get_errno())}")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise SandboxError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    return pages * resource.getpagesize()


def _limit(memory_bytes: int, cpu_s: int, file_bytes: int, descriptor_count: int) -> None:
    """Set limits that only root could raise again."""
    limits = (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, FIRST_DESCRIPTOR + descriptor_count),
    )
    for kind, most in limits:
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def python(module: str) -> list[str]:
    """Return the command that runs one of our modules."""
    return [sys.executable, "-P", "-s", "-m", module]


def python_environment() -> dict[str, str]:
    """Return all that the interpreter needs to find what this one finds."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
