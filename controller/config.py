"""Settings of the controller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from backplane.runtime.config import Bytes, Duration
from controller.core.dispatcher import LEASE_S
from controller.core.inactivity import QUIET_S, SYNC_TIMEOUT_S
from controller.core.lanes import STRETCH_BYTES_MIN


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """One TOML file; `docs/config.md` describes the keys."""

    name: str = "controller"
    listen: str = "tcp://127.0.0.1:7747"
    key_file: Path
    authorized_folder: Path
    state_folder: Path
    ready_file: Path | None = None
    lease: Annotated[float, Duration(1.0, 3600.0)] = LEASE_S
    heartbeat: Annotated[float, Duration(0.1, 60.0)] = 2.0
    inactivity_s: Annotated[float, Duration(0.0, 3600.0)] = QUIET_S
    stretch_bytes_min: Bytes = STRETCH_BYTES_MIN
    sync_timeout_s: Annotated[float, Duration(0.0, 86400.0)] = SYNC_TIMEOUT_S
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    log_file: Path | None = None
