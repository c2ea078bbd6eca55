"""A loop device, where this machine lets us have one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

LOOP_BYTES = 4 * 1024 * 1024


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Path]:
    """Yield a loop device of `LOOP_BYTES` over the file `backing` in `tmp_path`."""
    losetup = shutil.which("losetup")
    if losetup is None:
        pytest.skip("loop device: losetup is not installed")
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(LOOP_BYTES))
    made = subprocess.run(
        [losetup, "--find", "--show", str(backing)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"loop device: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run([losetup, "--detach", str(device)], check=True)
