from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from backplane.runtime.keys import load_key_pair, load_public_key


def test_create_writes_a_secret_for_its_owner_only(ctl: Any, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    code, out, _ = ctl(
        "keys",
        "create",
        *("--folder", str(folder), "--role", "mover", "--name", "m1", "--output", "json"),
    )
    assert code == 0
    told = json.loads(out)
    pair = load_key_pair(Path(told["secret_file"]))
    assert (pair.role, pair.name, pair.public.hex()) == ("mover", "m1", told["public_key"])
    assert load_public_key(Path(told["public_file"])).public == pair.public
    assert stat.S_IMODE(Path(told["secret_file"]).stat().st_mode) == 0o600
    assert pair.secret.hex() not in out


def test_a_key_is_never_overwritten(ctl: Any, tmp_path: Path) -> None:
    arguments = ("keys", "create", "--folder", str(tmp_path), "--role", "mover", "--name", "m1")
    assert ctl(*arguments)[0] == 0
    before = (tmp_path / "m1.secret").read_bytes()
    code, out, err = ctl(*arguments)
    assert (code, out) == (5, "")
    assert "exists already" in err
    assert (tmp_path / "m1.secret").read_bytes() == before


def test_if_missing_keeps_a_key_and_says_which(ctl: Any, tmp_path: Path) -> None:
    arguments = ("keys", "create", "--folder", str(tmp_path), "--role", "mover", "--name", "m1")
    _, first, _ = ctl(*arguments, "--if-missing")
    code, second, _ = ctl(*arguments, "--if-missing")
    assert (code, second) == (0, first)


def test_if_missing_refuses_a_key_of_another_role(ctl: Any, tmp_path: Path) -> None:
    assert (
        ctl("keys", "create", "--folder", str(tmp_path), "--role", "mover", "--name", "m")[0] == 0
    )
    code, _, err = ctl(
        *("keys", "create", "--folder", str(tmp_path), "--role", "storage", "--name", "m"),
        "--if-missing",
    )
    assert code == 5
    assert "belongs to mover" in err


def test_a_folder_that_cannot_be_written_is_refused(ctl: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = ctl(
        *("keys", "create", "--folder", str(tmp_path / "file" / "keys")),
        *("--role", "mover", "--name", "m1"),
    )
    assert code == 5
    assert err.startswith("ctl: cannot write keys to")
