"""Settings of the controller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backplane.runtime.config import Seconds
from controller.core.dispatcher import LEASE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """One TOML file; `docs/config.md` describes the keys."""

    name: str = "controller"
    listen: str = "tcp://127.0.0.1:7747"
    key_file: Path
    authorized_folder: Path
    state_folder: Path
    ready_file: Path | None = None
    lease: Seconds = LEASE_S
    heartbeat: Seconds = 2.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    log_file: Path | None = None
