"""Mounts of image files by loop devices, on a machine where others mount at the same time."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

TRIES = 20
PAUSE_S = 0.2
_BUSY = "already mounted or mount point busy"


def mount_image(
    image: Path, folder: Path, options: str = "", *, kind: str = ""
) -> subprocess.CompletedProcess[str]:
    """Mount an image file; the result is the last try's.

    A loop device lets go of its old image only after `umount` has ended: who is given the device in that moment finds
    it busy, and has to ask again.
    """
    command = ["mount", "-o", ",".join(filter(None, ("loop", options)))]
    command += ["-t", kind] if kind else []
    for attempt in range(TRIES):
        done = subprocess.run(
            [*command, str(image), str(folder)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if _BUSY not in done.stderr or attempt == TRIES - 1:
            break
        time.sleep(PAUSE_S)
    return done
