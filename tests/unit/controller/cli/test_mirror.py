from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import NotFoundError

LEGS = """\
LEG   STATE            IN SYNC  PATH ON NODE        REASON
leg1  resynchronising    25.0%  /srv/vol1.img.leg1  -
far   failed              0.0%  /mnt/far/vol1.img   no space left
"""


def leg(**changes: Any) -> dict[str, Any]:
    return {
        "leg": "leg1",
        "path": "/srv/vol1.img.leg1",
        "state": "resynchronising",
        "reason": "",
        "bytes_left": 3072,
        "bytes_total": 4096,
    } | changes


@pytest.fixture
def mirrored(documents: Any) -> Any:
    """The document of a volume with two legs."""
    failed = leg(
        leg="far",
        path="/mnt/far/vol1.img",
        state="failed",
        reason="no space left",
        bytes_left=4096,
    )
    return documents["volume"] | {"legs": [leg(), failed]}


def test_status_as_a_table(controller: Any, ctl: Any, mirrored: Any) -> None:
    controller.answers["volume.show"] = mirrored
    assert ctl("volume", "mirror", "status", "vol1") == (0, LEGS, "")
    assert controller.arguments("volume.show") == {"name": "vol1"}


def test_status_as_json_is_the_volume(controller: Any, ctl: Any, mirrored: Any) -> None:
    controller.answers["volume.show"] = mirrored
    code, out, _ = ctl("volume", "mirror", "status", "vol1", "--output", "json")
    assert (code, json.loads(out)) == (0, mirrored)


def test_a_volume_without_a_mirror_says_so(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["volume.show"] = documents["volume"] | {"legs": []}
    assert ctl("volume", "mirror", "status", "vol1") == (0, "no mirror\n", "")


@pytest.mark.parametrize(
    ("left", "total", "shown"),
    [
        (0, 4096, "100%"),
        (0, 0, "100%"),  # A leg that was split off while nobody wrote catches up at once.
        (4096, 4096, "0.0%"),
        (1, 1 << 40, "99.9%"),  # Never all before it is all.
        (4096, 0, "0.0%"),
    ],
)
def test_how_much_of_a_leg_is_in_sync(
    controller: Any, ctl: Any, documents: Any, left: int, total: int, shown: str
) -> None:
    one = leg(bytes_left=left, bytes_total=total)
    controller.answers["volume.show"] = documents["volume"] | {"legs": [one]}
    code, out, _ = ctl("volume", "mirror", "status", "vol1")
    assert code == 0
    assert out.splitlines()[1].split()[2] == shown


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        (("add", "vol1"), {"action": "add", "leg": "leg1", "path": ""}),
        (
            ("add", "vol1", "--leg", "far", "--path", "/mnt/far"),
            {"action": "add", "leg": "far", "path": "/mnt/far"},
        ),
        (("remove", "vol1", "--leg", "far"), {"action": "remove", "leg": "far"}),
        (("resync", "vol1"), {"action": "resync", "leg": "leg1"}),
    ],
)
def test_a_change_is_asked_for_and_the_legs_are_shown(
    controller: Any, ctl: Any, mirrored: Any, typed: tuple[str, ...], sent: dict[str, str]
) -> None:
    controller.answers["volume.mirror"] = mirrored
    assert ctl("volume", "mirror", *typed) == (0, LEGS, "")
    assert controller.arguments("volume.mirror") == {"name": "vol1"} | sent


def test_a_leg_that_is_not_there_is_an_error(controller: Any, ctl: Any) -> None:
    controller.answers["volume.mirror"] = NotFoundError("volume 'vol1' has no leg 'far'")
    code, out, err = ctl("volume", "mirror", "remove", "vol1", "--leg", "far")
    assert (code, out, err) == (4, "", "ctl: volume 'vol1' has no leg 'far'\n")


def test_split_makes_a_view_of_a_leg(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["view.create"] = documents["view"] | {"means": "mirror"}
    code, out, err = ctl("volume", "mirror", "split", "vol1")
    assert (code, err) == (0, "")
    assert "Means:        mirror\n" in out
    assert "Read it at:   nbd://" in out
    arguments = controller.arguments("view.create")
    assert arguments.pop("token")
    assert arguments == {"name": "vol1", "means": "mirror"}
