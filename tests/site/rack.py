"""Real drives and a changer, as far as a storage node can tell: the models of both drivers over virtual cartridges.

    rack = Rack(folder, drives=2)
    rack.make("LTO001L8")                  a cartridge on the shelf
    rack.put("LTO001L8", "drive-0")        by hand; or into "slot-1", where the robot has it
    rack.open(Path("/dev/nst0"))           what `DeviceFile` would be
    rack.changer()                         what `SgDevice` would be

Everything is in files, so that a process can be killed and the next one finds it: also that its driver has closed the
tape, with a filemark if the last operation was a write.  What the drive had in its buffer is lost then, as without
power.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, Final

from backplane.errors import MediumError
from storage_node.core.mtio import GeneralStatus, MagneticTape, TapeStatus
from storage_node.core.tape_position import SpaceCode
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import new_cartridge_info
from storage_node.tape.drive import DriveMode
from storage_node.tape.virtual_drive import VirtualDrive
from tests.site.smc_device import DOOR, DRIVES, STORAGE, SmcDevice
from tests.site.st_driver import StDriver

CAPACITY: Final = 64 << 20
ADDRESSES: Final = {
    f"{kind}-{base + n}": first + n
    for kind, (first, count), base in (("slot", STORAGE, 1), ("io", DOOR, 1), ("drive", DRIVES, 0))
    for n in range(count)
}
ELEMENTS: Final = {address: name for name, address in ADDRESSES.items()}


class Rack:
    """Cartridges, drives, slots and a shelf."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cartridges = folder / "cartridges"
        self.cartridges.mkdir(parents=True, exist_ok=True)
        self.devices: dict[str, RackDevice] = {}
        """The open one of each drive."""
        self.fails_to_lock = False
        self.locked: set[str] = set()
        """Drives that were closed with their doors locked: so they stay."""

    # --- a person --------------------------------------------------------------------------------

    def make(self, name: str, *, capacity_bytes: int = CAPACITY, **options: Any) -> None:
        """Make a blank cartridge."""
        info = new_cartridge_info(
            serial=name.encode().hex().ljust(32, "0")[:32],
            tag=name,
            created="2026-01-11T10:43:48Z",
            capacity_bytes=capacity_bytes,
            **options,
        )
        Cartridge.create(self.cartridges / name, info)

    def put(self, name: str, element: str) -> None:
        """Put a cartridge into an element."""
        assert element not in self.places, self.places
        self._save(places=self.places | {element: name})

    def take(self, element: str) -> str:
        """Take a cartridge out; a drive has to have given it out."""
        places = self.places
        name = places.pop(element)
        device = self.devices.get(element)
        is_locked = device.is_locked if device is not None else element in self.locked
        assert not is_locked, f"{element} holds on to {name}"
        self._save(places=places, ejected=[each for each in self.ejected if each != element])
        return name

    # --- state -----------------------------------------------------------------------------------

    @property
    def places(self) -> dict[str, str]:
        """What is in which element."""
        return dict(self._load()["places"])

    @property
    def ejected(self) -> list[str]:
        """Drives that have given out their cartridge, which still lies in them."""
        return list(self._load()["ejected"])

    def _load(self) -> dict[str, Any]:
        path = self.folder / "rack.json"
        if not path.exists():
            return {"places": {}, "homes": {}, "ejected": []}
        return dict(json.loads(path.read_text()))

    def _save(self, **changes: Any) -> None:
        new = self.folder / ".rack.new"
        new.write_text(json.dumps(self._load() | changes))
        new.rename(self.folder / "rack.json")

    def writing(self, element: str) -> Path:
        """Return the file that is there while a drive's last operation is a write."""
        return self.folder / f"{element}.writing"

    # --- devices ---------------------------------------------------------------------------------

    def open(self, path: Path) -> Any:
        """Open the device of a drive."""
        element = f"drive-{path.name.removeprefix('nst')}"
        if element not in ADDRESSES:
            raise MediumError(f"tape device {path}: {os.strerror(errno.ENOENT)}")
        if element in self.devices:
            raise MediumError(f"tape device {path}: {os.strerror(errno.EBUSY)}")
        name = self.places.get(element)
        if name is None or element in self.ejected:
            return EmptyDevice(self, element)
        drive = VirtualDrive()
        drive.load(self.cartridges / name, announce=False)
        if self.writing(element).exists():
            drive.set_mode(DriveMode(is_append_only=False))
            drive.space(SpaceCode.END_OF_DATA)
            drive.write_filemarks(1)
            self.writing(element).unlink()
        self.devices[element] = RackDevice(self, element, drive)
        return self.devices[element]

    def give_out(self, element: str) -> None:
        """Note that a drive has let go of its cartridge."""
        self._save(ejected=sorted({*self.ejected, element}))

    def take_in(self, element: str) -> None:
        """Note that a drive has threaded the cartridge that lay in it."""
        self._save(ejected=[each for each in self.ejected if each != element])

    def changer(self) -> SmcDevice:
        """Return the changer."""
        return RackChanger(self)

    def move(self, source: str, destination: str, home: int) -> None:
        """Have the robot move a cartridge."""
        name = self.take(source)
        self.put(name, destination)
        self._save(homes=self._load()["homes"] | {name: home})

    def home(self, name: str) -> int | None:
        """Return the address that a cartridge was moved from last."""
        found = self._load()["homes"].get(name)
        return None if found is None else int(found)


class EmptyDevice:
    """The device of a drive without a tape under its head."""

    def __init__(self, rack: Rack, element: str) -> None:
        self.rack, self.element = rack, element

    def status(self) -> TapeStatus:
        return TapeStatus(
            residual=0, general=GeneralStatus.DOOR_OPEN, file_number=-1, block_number=-1
        )

    def operate(self, operation: MagneticTape, count: int) -> None:
        if operation is not MagneticTape.LOAD or self.element not in self.rack.ejected:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.rack.take_in(self.element)

    def position(self) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def close(self) -> None:
        pass


class RackDevice(StDriver):
    """The device of a drive with a cartridge."""

    def __init__(self, rack: Rack, element: str, drive: VirtualDrive) -> None:
        super().__init__(drive)
        self.rack, self.element = rack, element

    def write(self, data: memoryview) -> int:
        if not self.is_writing:
            self.rack.writing(self.element).touch()
        return super().write(data)

    def operate(self, operation: MagneticTape, count: int) -> None:
        if operation is MagneticTape.LOCK and self.rack.fails_to_lock:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().operate(operation, count)
        if not self.is_writing:
            self.rack.writing(self.element).unlink(missing_ok=True)
        if operation is MagneticTape.OFFL:
            self.rack.give_out(self.element)

    def close(self) -> None:
        super().close()
        self.rack.writing(self.element).unlink(missing_ok=True)
        self.drive.unload()
        (self.rack.locked.add if self.is_locked else self.rack.locked.discard)(self.element)
        del self.rack.devices[self.element]


class RackChanger(SmcDevice):
    """The robot, which knows what is where by looking."""

    def __init__(self, rack: Rack) -> None:
        super().__init__()
        self.rack = rack

    def close(self) -> None:
        pass

    def command(self, cdb: bytes, *, receive: int, timeout_s: float) -> bytes:
        self.content = {
            ADDRESSES[element]: (name, self.rack.home(name))
            for element, name in self.rack.places.items()
        }
        before = dict(self.content)
        reply = super().command(cdb, receive=receive, timeout_s=timeout_s)
        gone = before.keys() - self.content.keys()
        if gone:
            [source], [destination] = gone, self.content.keys() - before.keys()
            self.rack.move(ELEMENTS[source], ELEMENTS[destination], source)
        return reply
