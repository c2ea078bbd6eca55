"""Zeros without writing them: what is asked of the kernel, and what a refusal does."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_node.disk import zeroing
from storage_node.disk.zeroing import Zeroing, fallocate

PUNCH, RANGE = 0x03, 0x11


@pytest.fixture
def descriptor(tmp_path: Path) -> int:
    (tmp_path / "data").write_bytes(b"x" * 65536)
    return os.open(tmp_path / "data", os.O_RDWR)


Refuse = Callable[..., list[int]]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Let the kernel refuse modes; returns the list of modes that were asked for."""

    def install(**codes: int) -> list[int]:
        asked: list[int] = []

        def call(descriptor: int, mode: int, start: int, count: int) -> None:
            asked.append(mode)
            code = codes.get({PUNCH: "punch", RANGE: "range"}[mode])
            if code is not None:
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr(zeroing, "fallocate", call)
        return asked

    return install


def attempt(
    what: Zeroing, descriptor: int, *, may_punch: bool = True, is_fast_only: bool = False
) -> bool:
    return what.attempt(descriptor, 0, 4096, may_punch=may_punch, is_fast_only=is_fast_only)


def test_the_call_keeps_the_size_and_names_its_error(descriptor: int) -> None:
    fallocate(descriptor, PUNCH, 4096, 1 << 20)
    assert os.fstat(descriptor).st_size == 65536
    assert os.pread(descriptor, 4097, 4095) == b"x" + bytes(4096)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
        fallocate(1 << 20, PUNCH, 0, 4096)
    assert caught.value.errno == errno.EBADF
    os.close(descriptor)


def test_what_is_not_known_is_asked_for_once(descriptor: int, refuse: Refuse) -> None:
    what, asked = Zeroing(descriptor), refuse(punch=errno.EOPNOTSUPP, range=errno.ENOSYS)
    assert [attempt(what, descriptor) for _ in range(3)] == [False] * 3
    assert asked == [PUNCH, RANGE]
    os.close(descriptor)


def test_what_is_refused_for_a_range_is_asked_for_again(descriptor: int, refuse: Refuse) -> None:
    what, asked = Zeroing(descriptor), refuse(punch=errno.EBUSY)
    assert attempt(what, descriptor)
    assert attempt(what, descriptor)
    assert asked == [PUNCH, RANGE] * 2
    os.close(descriptor)


def test_space_is_only_given_back_if_it_may(descriptor: int, refuse: Refuse) -> None:
    what, asked = Zeroing(descriptor), refuse()
    assert attempt(what, descriptor, may_punch=False)
    assert asked == [RANGE]
    os.close(descriptor)


def test_other_errors_are_not_swallowed(descriptor: int, refuse: Refuse) -> None:
    what = Zeroing(descriptor)
    refuse(punch=errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        attempt(what, descriptor)
    os.close(descriptor)


def test_of_a_block_device_only_the_hole_is_fast(loop_device: Path, refuse: Refuse) -> None:
    descriptor = os.open(loop_device, os.O_RDWR)
    what, asked = Zeroing(descriptor), refuse(punch=errno.EOPNOTSUPP)
    assert what.align_bytes >= 512
    assert not attempt(what, descriptor, is_fast_only=True)
    assert not attempt(what, descriptor, may_punch=False, is_fast_only=True)
    assert asked == [PUNCH]
    assert attempt(what, descriptor)
    os.close(descriptor)
