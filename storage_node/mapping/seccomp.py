"""Which system calls the parser can still make: a filter in the kernel that cannot be taken back (seccomp(2)).

The parser only receives, sends and takes memory.  It has no root, but often the user of the node itself, whose files
and processes it must not touch if a file system's bytes have taken it over.  So everything but the calls below fails
with EPERM: opening, unlinking, connecting, starting and signalling are all among what is missing.

The filter is a program of classic BPF over `struct seccomp_data`: number of the call at byte 0, architecture at 4.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

_LOAD: Final = 0x20
"""BPF_LD | BPF_W | BPF_ABS."""
_JUMP_EQUAL: Final = 0x15
"""BPF_JMP | BPF_JEQ | BPF_K."""
_RETURN: Final = 0x06
"""BPF_RET | BPF_K."""
_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000 | errno.EPERM

_INSTRUCTION: Final = struct.Struct("=HBBI")
_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2


class Machine(NamedTuple):
    """A kind of processor: the kernel's number for it, and those of the calls that stay allowed."""

    audit: int
    calls: Mapping[str, int]


MACHINES: Final = {
    "x86_64": Machine(
        0xC000003E,
        {
            "read": 0,
            "write": 1,
            "close": 3,
            "fstat": 5,
            "poll": 7,
            "lseek": 8,
            "mmap": 9,
            "mprotect": 10,
            "munmap": 11,
            "brk": 12,
            "rt_sigaction": 13,
            "rt_sigprocmask": 14,
            "rt_sigreturn": 15,
            "readv": 19,
            "writev": 20,
            "sched_yield": 24,
            "mremap": 25,
            "madvise": 28,
            "nanosleep": 35,
            "getpid": 39,
            "sendto": 44,
            "recvfrom": 45,
            "sendmsg": 46,
            "recvmsg": 47,
            "exit": 60,
            "sigaltstack": 131,
            "gettid": 186,
            "futex": 202,
            "restart_syscall": 219,
            "clock_gettime": 228,
            "clock_nanosleep": 230,
            "exit_group": 231,
            "ppoll": 271,
            "getrandom": 318,
        },
    ),
    "aarch64": Machine(
        0xC00000B7,
        {
            "close": 57,
            "lseek": 62,
            "read": 63,
            "write": 64,
            "readv": 65,
            "writev": 66,
            "ppoll": 73,
            "fstat": 80,
            "exit": 93,
            "exit_group": 94,
            "futex": 98,
            "nanosleep": 101,
            "clock_gettime": 113,
            "clock_nanosleep": 115,
            "sched_yield": 124,
            "restart_syscall": 128,
            "sigaltstack": 132,
            "rt_sigaction": 134,
            "rt_sigprocmask": 135,
            "rt_sigreturn": 139,
            "getpid": 172,
            "gettid": 178,
            "sendto": 206,
            "recvfrom": 207,
            "sendmsg": 211,
            "recvmsg": 212,
            "brk": 214,
            "munmap": 215,
            "mremap": 216,
            "mmap": 222,
            "mprotect": 226,
            "madvise": 233,
            "getrandom": 278,
        },
    ),
}
"""Numbers: asm/unistd_64.h, and asm-generic/unistd.h for aarch64; architectures: AUDIT_ARCH_* of linux/audit.h."""


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def program(machine: Machine) -> bytes:
    """Return the filter: of another architecture nothing is allowed, of this one the calls that are listed."""
    count = len(machine.calls)
    assert count < 255, "a jump goes over at most 255 instructions"
    lines = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 0, count + 1, machine.audit),
        (_LOAD, 0, 0, 0),
        *((_JUMP_EQUAL, count - at, 0, call) for at, call in enumerate(machine.calls.values())),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)


def restrict() -> None:
    """Allow this process nothing else any more, for good.  Raises `OSError` where that is not to be had.

    Needs PR_SET_NO_NEW_PRIVS before.
    """
    machine = MACHINES.get(platform.machine())
    if machine is None or struct.calcsize("P") != 8:
        raise OSError(errno.ENOSYS, f"no filter for {platform.machine()}")
    text = program(machine)
    filter_ = _Program(len(text) // _INSTRUCTION.size, text)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filter_), 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
