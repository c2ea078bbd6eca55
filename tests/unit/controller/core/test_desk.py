"""The desk is the machine, as far as procedures may see it."""

from __future__ import annotations

import inspect

from controller.core.desk import Desk
from controller.core.machine import Machine
from tests.site.site import Site

METHODS = sorted(name for name in vars(Desk) if not name.startswith("_"))


def test_the_machine_has_everything_that_the_desk_promises_with_the_same_arguments() -> None:
    assert METHODS
    for name in METHODS:
        if name == "new_uuid":
            continue  # Given to the machine from outside.
        promised = inspect.signature(getattr(Desk, name)).parameters
        kept = inspect.signature(getattr(Machine, name)).parameters
        assert list(promised) == list(kept), name


def test_the_machine_has_every_attribute_that_the_desk_promises(site: Site) -> None:
    for name in (*Desk.__annotations__, "new_uuid"):
        assert hasattr(site.machine, name), name


def test_what_the_desk_does_says_so_in_its_docstring() -> None:
    assert not [name for name in METHODS if not getattr(Desk, name).__doc__]
