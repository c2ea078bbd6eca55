"""What operators see of the catalog."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.ids import NodeName
from controller.catalog.store import Size
from controller.core import effects as core
from controller.core.catalog_documents import check_document, show_document
from tests.site.rebuilding import lose_catalog
from tests.site.site import Site, backed_up


def verdicts(site: Site) -> dict[str, str]:
    lines = check_document(site.machine)["cartridges"]
    return {line["tag"]: line["verdict"] for line in lines}


def tell(site: Site, **changes: Any) -> None:
    """Let the tape node say something else of its first cartridge."""
    inventory = site.tape.inventory()
    first, *others = inventory.cartridges
    message = replace(inventory, cartridges=(replace(first, **changes), *others))
    site.feed(core.FromPeer(name=NodeName("tape"), message=message))


def test_a_catalog_says_what_it_is(site: Site) -> None:
    size = Size(place="/c", bytes=7, rows={"BackupRow": 1, "MapHeaderRow": 0})
    assert show_document(site.machine, size) == {
        "store": site.machine.store,
        "path": "/c",
        "bytes": 7,
        "rows": {"backup": 1, "mapheader": 0},
        "is_behind": False,
        "hint": "",
    }
    backed_up(site)
    lose_catalog(site)
    shown = show_document(site.machine, size)
    assert (shown["is_behind"], "ctl catalog rebuild --all" in shown["hint"]) == (True, True)


def test_cartridges_that_agree_are_ok(site: Site) -> None:
    backed_up(site)
    tell(site)
    assert verdicts(site) == {"LTO001L8": "ok", "LTO002L8": "blank"}
    [line, _] = check_document(site.machine)["cartridges"]
    assert (line["parts"], line["end"]) == (1, line["end_on_tape"])


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"end": 5}, "shorter", "it ends at object 5, parts reach to"),
        ({"end": 500}, "tail", "objects behind the last part that the catalog knows"),
        ({"cartridge": "9" * 32}, "another", "its label says " + "9" * 32),
    ],
)
def test_each_difference_has_a_name(
    site: Site, changes: dict[str, Any], verdict: str, words: str
) -> None:
    backed_up(site)
    tell(site, **changes)
    [line, _] = check_document(site.machine)["cartridges"]
    assert line["verdict"] == verdict
    assert words in line["detail"]


def test_what_the_catalog_does_not_know_is_told_with_the_recipe(site: Site) -> None:
    backed_up(site)
    site.set_cartridge("LTO001L8", status="foreign", cartridge="9" * 32)
    tell(site, cartridge="9" * 32, store="d" * 32)
    [line, _] = check_document(site.machine)["cartridges"]
    assert line["verdict"] == "unknown"
    assert (
        line["detail"] == f"a cartridge of catalog {'d' * 32}: ctl catalog rebuild --from LTO001L8"
    )


def test_what_is_not_here_is_compared_with_nothing(site: Site) -> None:
    backed_up(site)
    site.disconnect("tape")
    document = check_document(site.machine)
    assert {line["verdict"] for line in document["cartridges"]} == {"away"}
    assert {line["end_on_tape"] for line in document["cartridges"]} == {None}
