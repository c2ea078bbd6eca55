"""An NBD server as a process of its own, over plain files: what real clients, abusers and benchmarks talk to.

    with NbdProcess({"disk": path}, ["tcp://127.0.0.1:0", f"unix://{folder}/s"]) as server:
        server.uri("disk")                  nbd://127.0.0.1:40213/disk
        server.uri("disk", unix=True)       nbd+unix:///disk?socket=...

A process, because a server that shares the interpreter with its client shares its memory, its descriptors and its lock
as well.  Exports are volumes; those whose names hold an `@` are read-only, as static views are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from backplane.errors import NotFoundError
from backplane.testing.nbd_client import nbd_uri
from storage_node.disk.file import FileDevice
from storage_node.nbd.export import DeviceExport
from storage_node.nbd.server import NbdServer

BLOCK_BYTES = 512
READY_S = 30
STOP_S = 30


class Volumes:
    """The exports: devices that stay open whoever comes and goes."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._devices = {
            name: FileDevice(Path(path), block_bytes=BLOCK_BYTES) for name, path in paths.items()
        }

    def names(self) -> list[str]:
        return sorted(self._devices)

    def open(self, name: str, client: str) -> DeviceExport:
        if (device := self._devices.get(name)) is None:
            raise NotFoundError(f"there is no export {name}")
        return DeviceExport(device, name=name, is_read_only="@" in name)


def main() -> None:
    """Serve what the first line of standard input describes, until it ends; say the real addresses when ready."""
    wanted = json.loads(sys.stdin.readline())
    server = NbdServer(Volumes(wanted["exports"]), **wanted["settings"])
    addresses = server.start(wanted["addresses"])
    print(json.dumps(addresses), flush=True)
    sys.stdin.read()
    server.close()


class NbdProcess:
    """The server and where it listens."""

    def __init__(
        self,
        exports: Mapping[str, Path],
        addresses: Sequence[str],
        **settings: Any,
    ) -> None:
        wanted = {
            "exports": {name: str(path) for name, path in exports.items()},
            "addresses": list(addresses),
            "settings": settings,
        }
        # A file, not a pipe: nobody reads it while a test runs, and a full pipe would stop the server.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.site.nbd_process"],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            log = self.stop()
            raise RuntimeError(f"the NBD server did not start:\n{log}")
        self.addresses: list[str] = json.loads(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def address(self, *, unix: bool = False) -> str:
        """The first address of a kind."""
        scheme = "unix://" if unix else "tcp://"
        return next(address for address in self.addresses if address.startswith(scheme))

    def uri(self, export: str = "", *, unix: bool = False) -> str:
        return nbd_uri(self.address(unix=unix), export)

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def cpu_s(self) -> float:
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def stop(self) -> str:
        """End it and return what it logged; twice is once."""
        process = self._process
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()  # the server's word to stop
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            finally:
                assert process.stdout is not None
                process.stdout.close()
                self._log.seek(0)
                self._text = self._log.read().decode(errors="replace")
                self._log.close()
        return self._text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


if __name__ == "__main__":
    main()
