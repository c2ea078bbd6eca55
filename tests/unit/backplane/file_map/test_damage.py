"""What a damaged map is to those who only know errors by their kind."""

from __future__ import annotations

from backplane.errors import ExitCode, MediumError
from backplane.file_map.damage import MapDamagedError


def test_a_damaged_map_is_damage_of_a_medium() -> None:
    error = MapDamagedError("no page of a map")
    assert isinstance(error, MediumError)
    assert (error.kind, error.exit_code) == ("medium", ExitCode.DAMAGED)
