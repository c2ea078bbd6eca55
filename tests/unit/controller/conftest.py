"""The site in miniature for tests of the controller."""

from __future__ import annotations

import pytest

from tests.site.site import Site, connected


@pytest.fixture
def site() -> Site:
    """A site with both nodes and one mover connected."""
    return connected()
