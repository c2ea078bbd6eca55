"""Settings of a mover."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from backplane.runtime.config import Between, Duration, Size
from backplane.units import GIB, MIB
from backplane.wire.frames import DATA_BYTES_MAX
from mover_node.runs import InFlight

NAME_OF_KEY: Final = "auto"
"""Use the name that belongs to the key, so that several movers can share one configuration file."""

_DEFAULTS: Final = InFlight()


@dataclass(frozen=True, slots=True, kw_only=True)
class MoverConfig:
    """One TOML file; `docs/config.md` describes the keys."""

    name: str = NAME_OF_KEY
    controller: str
    controller_key_file: Path
    key_file: Path
    state_folder: Path | None = None
    """Where SIGUSR1 puts `state.json`; a mover keeps nothing else."""
    ready_file: Path | None = None
    items: Annotated[int, Between(1, 16)] = 1
    """Work items at the same time."""
    relay: Literal["auto", "splice", "copy"] = "auto"
    reads_in_flight: Annotated[int, Between(1, 64)] = _DEFAULTS.reads_max
    writes_in_flight: Annotated[int, Between(1, 16)] = _DEFAULTS.writes_max
    bytes_in_flight: Annotated[int, Size(DATA_BYTES_MAX, 256 * MIB)] = _DEFAULTS.bytes_max
    stream_buffer: Annotated[int, Size(0, 4 * GIB)] = 64 * MIB
    """Most that is held back for a tape whose disk cannot keep up; 0: nothing ever is."""
    data_timeout: Annotated[float, Duration(1.0, 600.0)] = 30.0
    drain_grace: Annotated[float, Duration(0.0, 3600.0)] = 10.0
    """How long a running item may go on after the signal to stop."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    log_file: Path | None = None

    @property
    def in_flight(self) -> InFlight:
        """The limits of a run of transfers."""
        return InFlight(
            reads_max=self.reads_in_flight,
            writes_max=self.writes_in_flight,
            bytes_max=self.bytes_in_flight,
            store_bytes_max=self.stream_buffer,
        )
