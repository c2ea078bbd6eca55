"""Wishes, and how a cancel ends."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from backplane.errors import BackupError, ExitCode, error_from_kind
from controller.core.procedure import JobCancelledError, NotYet, Wish


@pytest.mark.parametrize("cls", [*typing.get_args(Wish), NotYet], ids=lambda cls: cls.__name__)
def test_a_wish_is_a_value(cls: type) -> None:
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert dataclasses.fields(cls)


def test_a_cancelled_job_ends_like_an_interrupted_command() -> None:
    error = JobCancelledError("cancelled by an operator")
    assert error.exit_code is ExitCode.INTERRUPTED
    assert isinstance(error, BackupError)


def test_a_cancel_keeps_its_kind_over_the_wire() -> None:
    assert isinstance(error_from_kind("cancelled", "x"), JobCancelledError)
