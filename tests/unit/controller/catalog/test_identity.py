"""The file that remembers which catalog belongs into a folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from backplane.errors import ExitCode, MediumError, RefusedError
from controller.catalog.identity import NAME, CatalogIdentity
from controller.catalog.sql import SqlCatalog

A, B = "a" * 32, "b" * 32


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


@pytest.fixture
def identity(place: Path) -> CatalogIdentity:
    return CatalogIdentity(place)


def test_a_first_start_knows_nothing_and_asks_for_nothing(identity: CatalogIdentity) -> None:
    assert identity.stores() == ()
    identity.require_catalog()
    identity.check(A)


def test_it_is_remembered(identity: CatalogIdentity, place: Path) -> None:
    identity.remember(A)
    assert identity.stores() == (A,)
    identity.remember(B, A)
    assert identity.stores() == (B, A)
    assert place.with_name(NAME).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in place.parent.iterdir()) == [NAME]


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_catalog_that_is_gone_is_refused_with_the_recipe(
    identity: CatalogIdentity, place: Path, is_empty: bool
) -> None:
    with closing(SqlCatalog.open(place)) as catalog:
        identity.remember(catalog.store)
    identity.require_catalog()
    place.unlink()
    if is_empty:
        place.touch()
    with pytest.raises(RefusedError, match="is gone") as caught:
        identity.require_catalog()
    assert caught.value.exit_code is ExitCode.REFUSED
    for words in ("controller --new-catalog", "ctl catalog rebuild --all --wait"):
        assert words in caught.value.hint
    named = CatalogIdentity(place, command="controller --config /etc/c.toml --new-catalog")
    with pytest.raises(
        RefusedError, match=r"`controller --config /etc/c\.toml --new-catalog`, then"
    ):
        named.require_catalog()


def test_a_new_one_takes_its_place_and_nothing_of_the_old_log(
    identity: CatalogIdentity, place: Path
) -> None:
    identity.remember(A)
    log = place.with_name("catalog.sqlite-wal")
    log.write_bytes(b"of the old one")
    identity.begin_anew()
    assert identity.stores() == ()
    assert not log.exists()
    assert log.with_name("catalog.sqlite-wal.lost").read_bytes() == b"of the old one"
    with closing(SqlCatalog.open(place)) as catalog:
        assert catalog.load().backups == ()


def test_no_new_one_is_made_over_one_that_is_there(identity: CatalogIdentity, place: Path) -> None:
    SqlCatalog.open(place).close()
    with pytest.raises(
        RefusedError, match=r"there is a catalog .*`ctl catalog rebuild --all --wait`"
    ):
        identity.begin_anew()


def test_another_catalog_in_its_place_is_refused(identity: CatalogIdentity) -> None:
    identity.remember(A)
    identity.check(A)
    with pytest.raises(RefusedError, match="is another one"):
        identity.check(B)
    identity.remember(B, A)  # While it changes its name, it may have either.
    identity.check(A)
    identity.check(B)


@pytest.mark.parametrize("content", ["", "soon\n", "g" * 32, f"{A}\n{A[:-1]}\n"])
def test_a_damaged_file_is_told(identity: CatalogIdentity, place: Path, content: str) -> None:
    place.with_name(NAME).write_text(content)
    with pytest.raises(MediumError, match="is damaged"):
        identity.stores()
