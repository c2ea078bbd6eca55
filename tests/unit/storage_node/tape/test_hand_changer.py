"""Drives that a person loads."""

from __future__ import annotations

import pytest

from backplane.errors import RefusedError
from storage_node.core.changer import REMOVAL_PREVENTED, places
from storage_node.tape.hand_changer import HandChanger


def test_what_was_found_in_a_drive_is_there_until_it_is_out() -> None:
    changer = HandChanger(2)
    assert [status.element for status in changer.elements()] == ["drive-0", "drive-1"]
    changer.put("drive-1", "LTO001L8")
    changer.prevent("drive-1", is_prevented=True)
    changer.initialize()
    assert places(changer.elements()) == {"LTO001L8": "drive-1"}
    assert [status.is_removal_prevented for status in changer.elements()] == [False, True]
    changer.prevent("drive-1", is_prevented=False)
    changer.put("drive-1", "")
    assert places(changer.elements()) == {}
    assert not any(status.is_removal_prevented for status in changer.elements())


def test_nobody_moves_anything() -> None:
    with pytest.raises(RefusedError, match="no changer") as caught:
        HandChanger(1).move("drive-0", "slot-1")
    assert caught.value.sense == REMOVAL_PREVENTED
    assert "ctl tape scan" in caught.value.hint
