"""Tests that share something expensive run in one worker: the groups of pytest-xdist are kept."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", params=["a", "b"])
def shared(request: pytest.FixtureRequest) -> str:
    """What is made once for all tests of a module."""
    return str(request.param)


def needs_groups(request: pytest.FixtureRequest) -> None:
    """Skip where nobody asked for groups."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("runs in one process")
    if not request.config.getvalue("loadgroup"):
        pytest.skip("runs without --dist loadgroup")


@pytest.mark.xdist_group("named")
def test_a_group_that_is_named_is_kept_by_the_installed_versions(
    request: pytest.FixtureRequest,
) -> None:
    """pytest-xdist keeps those together whose names end the same, and with pytest 9.2 it cannot change names."""
    needs_groups(request)
    assert request.node.nodeid.endswith("@named")


def test_tests_with_a_fixture_of_their_module_are_a_group_for_each_parameter(
    request: pytest.FixtureRequest, shared: str
) -> None:
    needs_groups(request)
    number = {"a": 0, "b": 1}[shared]
    assert request.node.nodeid.endswith(f"@test_groups {number}")


SEEN: list[int] = []


@pytest.mark.parametrize("number", range(20))
def test_what_has_no_group_is_handed_out_in_whole_files(
    request: pytest.FixtureRequest, number: int
) -> None:
    """In one worker, and one after the other: each test finds that the one before it was here."""
    needs_groups(request)
    assert number == len(SEEN), "pytest_xdist_make_scheduler of tests/conftest.py is not used"
    SEEN.append(number)
