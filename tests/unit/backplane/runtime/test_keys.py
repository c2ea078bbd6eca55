"""Key files and the table of authorized keys."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from backplane.errors import ConfigError, NotFoundError, RefusedError, UsageError
from backplane.runtime.keys import (
    Authorized,
    KeyPair,
    KeyTable,
    create_key_pair,
    ensure_key_pair,
    load_key_pair,
    load_public_key,
)
from backplane.testing.clock import ManualClock
from backplane.wire.grants import agree


def test_a_new_key_pair_is_written_and_read_back(tmp_path: Path) -> None:
    pair = create_key_pair(tmp_path / "keys", role="mover", name="m1")
    assert load_key_pair(tmp_path / "keys" / "m1.secret") == pair
    public = load_public_key(tmp_path / "keys" / "authorized" / "m1.public")
    assert (public.public, public.role, public.name) == (pair.public, "mover", "m1")


def test_two_key_pairs_agree_on_a_secret(tmp_path: Path) -> None:
    one = create_key_pair(tmp_path, role="mover", name="m1")
    two = create_key_pair(tmp_path, role="storage", name="n1")
    assert agree(one.secret, two.public) == agree(two.secret, one.public)


def test_the_secret_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    earlier = os.umask(0)
    try:
        create_key_pair(tmp_path, role="mover", name="m1")
    finally:
        os.umask(earlier)
    assert stat.S_IMODE((tmp_path / "m1.secret").stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["authorized", "m1.secret"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    create_key_pair(tmp_path, role="mover", name="m1")
    (tmp_path / "m1.secret").chmod(mode)
    with pytest.raises(RefusedError, match=r"can be read by others.*chmod 600"):
        load_key_pair(tmp_path / "m1.secret")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    pair = create_key_pair(tmp_path, role="mover", name="m1")
    with pytest.raises(RefusedError, match="exists already"):
        create_key_pair(tmp_path, role="mover", name="m1")
    assert load_key_pair(tmp_path / "m1.secret") == pair


def test_ensure_makes_a_key_once(tmp_path: Path) -> None:
    pair = ensure_key_pair(tmp_path, role="mover", name="m1")
    assert ensure_key_pair(tmp_path, role="mover", name="m1") == pair


def test_ensure_completes_what_a_crash_cut_short(tmp_path: Path) -> None:
    """The public file is written first, so half a creation is a key that nobody holds."""
    lost = create_key_pair(tmp_path, role="mover", name="m1")
    (tmp_path / "m1.secret").unlink()
    pair = ensure_key_pair(tmp_path, role="mover", name="m1")
    table = KeyTable(tmp_path / "authorized")
    assert table.lookup(pair.public)
    assert table.lookup(lost.public) is None


def test_ensure_does_not_bring_a_revoked_key_back(tmp_path: Path) -> None:
    pair = ensure_key_pair(tmp_path, role="mover", name="m1")
    (tmp_path / "authorized" / "m1.public").unlink()
    assert ensure_key_pair(tmp_path, role="mover", name="m1") == pair
    assert KeyTable(tmp_path / "authorized").lookup(pair.public) is None


def test_makers_that_race_agree_on_one_key(tmp_path: Path) -> None:
    pairs: list[KeyPair] = []
    threads = [
        threading.Thread(
            target=lambda: pairs.append(ensure_key_pair(tmp_path, role="mover", name="m1"))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pairs) == 8
    assert len(set(pairs)) == 1
    assert load_public_key(tmp_path / "authorized" / "m1.public").public == pairs[0].public


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match="cannot write keys"):
        create_key_pair(tmp_path / "file", role="mover", name="m1")


def test_ensure_refuses_a_key_of_another_role(tmp_path: Path) -> None:
    ensure_key_pair(tmp_path, role="mover", name="m1")
    with pytest.raises(RefusedError, match="belongs to mover"):
        ensure_key_pair(tmp_path, role="storage", name="m1")


@pytest.mark.parametrize("name", ["", "../m1", "a/b", ".hidden", "x" * 65, 'a"b', "a b", "ä"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        create_key_pair(tmp_path, role="mover", name=name)


def test_an_unknown_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such role"):
        create_key_pair(tmp_path, role="root", name="m1")


def test_the_secret_is_never_shown(tmp_path: Path) -> None:
    pair = create_key_pair(tmp_path, role="mover", name="m1")
    assert pair.secret.hex() not in repr(pair)
    assert "secret" not in repr(pair)
    file = tmp_path / "m1.secret"
    for damage in (pair.secret.hex()[:-1], pair.secret.hex() + '" x'):
        file.write_text(file.read_text().replace(pair.secret.hex(), damage))
        with pytest.raises(ConfigError) as caught:
            load_key_pair(file)
        assert pair.secret.hex()[:8] not in str(caught.value)


def test_a_public_key_of_another_pair_is_noticed(tmp_path: Path) -> None:
    one = create_key_pair(tmp_path, role="mover", name="m1")
    two = create_key_pair(tmp_path, role="mover", name="m2")
    file = tmp_path / "m1.secret"
    file.write_text(file.read_text().replace(one.public.hex(), two.public.hex()))
    with pytest.raises(ConfigError, match="does not belong"):
        load_key_pair(file)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load_key_pair(tmp_path / "none.secret")


@pytest.mark.parametrize(
    "text",
    ["", "x", 'role = "mover"', 'role = 1\nname = "a"\npublic = "00"\n', "\xff", "# " + "x" * 5000],
)
def test_any_other_file_is_a_configuration_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.public").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError):
        load_public_key(tmp_path / "a.public")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def table(tmp_path: Path, clock: ManualClock) -> KeyTable:
    return KeyTable(tmp_path / "authorized", clock=clock)


def test_the_table_knows_role_and_name(tmp_path: Path, table: KeyTable) -> None:
    pair = create_key_pair(tmp_path, role="storage", name="n1")
    assert table.lookup(pair.public) == Authorized(role="storage", name="n1")
    assert table.is_authorized(pair.public)
    assert table.lookup(bytes(32)) is None


def test_a_new_and_a_removed_file_count_at_once(tmp_path: Path, table: KeyTable) -> None:
    pair = create_key_pair(tmp_path, role="mover", name="m1")
    assert table.lookup(pair.public)
    other = create_key_pair(tmp_path, role="mover", name="m2")
    # The folder's time may have the kernel's grain of some milliseconds.
    os.utime(tmp_path / "authorized", ns=(1, 1))
    assert table.lookup(other.public)
    (tmp_path / "authorized" / "m1.public").unlink()
    assert table.lookup(pair.public) is None
    assert table.lookup(other.public)


def test_an_edit_in_place_counts_within_a_second(
    tmp_path: Path, table: KeyTable, clock: ManualClock
) -> None:
    pair = create_key_pair(tmp_path, role="mover", name="m1")
    assert table.lookup(pair.public)
    (tmp_path / "authorized" / "m1.public").write_text("nothing")
    clock.advance(1.0)
    assert table.lookup(pair.public) is None


def test_without_a_folder_nobody_is_admitted(tmp_path: Path, table: KeyTable) -> None:
    assert table.lookup(bytes(32)) is None
    pair = create_key_pair(tmp_path, role="mover", name="m1")
    assert table.lookup(pair.public)


def test_a_damaged_file_shuts_out_only_its_own_key(tmp_path: Path, table: KeyTable) -> None:
    good = create_key_pair(tmp_path, role="mover", name="m1")
    bad = create_key_pair(tmp_path, role="mover", name="m2")
    file = tmp_path / "authorized" / "m2.public"
    file.write_text(file.read_text()[:-10])
    (tmp_path / "authorized" / "folder.public").mkdir()
    assert table.lookup(good.public)
    assert table.lookup(bad.public) is None


def test_a_file_under_a_wrong_name_admits_nobody(tmp_path: Path, table: KeyTable) -> None:
    pair = create_key_pair(tmp_path, role="mover", name="m1")
    folder = tmp_path / "authorized"
    (folder / "m1.public").rename(folder / "m9.public")
    assert table.lookup(pair.public) is None


def test_a_key_that_two_files_claim_admits_nobody(tmp_path: Path, table: KeyTable) -> None:
    pair = create_key_pair(tmp_path, role="mover", name="m1")
    folder = tmp_path / "authorized"
    for name in ("m2", "m3"):
        text = (folder / "m1.public").read_text().replace('"m1"', f'"{name}"')
        (folder / f"{name}.public").write_text(text)
    assert table.lookup(pair.public) is None
