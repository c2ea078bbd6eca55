"""Configuration: values, layers, and every mistake at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from backplane.errors import ConfigError
from backplane.runtime.config import Between, Bytes, Duration, Port, Seconds, load_config


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogConfig:
    file: Path
    cache: Bytes = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveConfig:
    name: str
    slots: Annotated[int, Between(1, 9)] = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    listen: str
    catalog: CatalogConfig
    lease: Annotated[float, Duration(1.0, 60.0)] = 15.0
    retry: Seconds | None = None
    port: Port = 7000
    is_strict: bool = True
    ratio: float = 0.5
    level: Literal["info", "debug"] = "info"
    roles: tuple[str, ...] = ("disk",)
    ports: tuple[Port, ...] = ()
    drives: tuple[DriveConfig, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


HINT = "write for example 500ms, 80s, 1h30m or 2 weeks"
MINIMAL = 'config_version = 1\nlisten = "tcp://x"\n[catalog]\nfile = "c.sqlite"\n'


def load(folder: Path, text: str, **environ: str) -> Config:
    file = folder / "controller.toml"
    file.write_text(text)
    return load_config(Config, file, env_prefix="CONTROLLER", environ=environ)


def findings(folder: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, **environ)
    return [finding.replace(f"{folder}/", "") for finding in caught.value.findings]


def test_defaults_fill_what_the_file_leaves_out(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    assert config == Config(
        listen="tcp://x", catalog=CatalogConfig(file=tmp_path / "c.sqlite", cache=1024)
    )


def test_every_kind_of_field_is_read(tmp_path: Path) -> None:
    text = """
        config_version = 1
        listen = "tcp://y"
        lease = "20s"
        retry = "500ms"
        port = 0
        is_strict = false
        ratio = 1
        level = "debug"
        roles = ["disk", "tape"]
        ports = [1, 2]
        drives = [{ name = "a" }, { name = "b", slots = 9 }]
        labels = { site = "north" }
        [catalog]
        file = "/abs/c"
        cache = "64MiB"
    """
    assert load(tmp_path, text) == Config(
        listen="tcp://y",
        lease=20.0,
        retry=0.5,
        port=0,
        is_strict=False,
        ratio=1.0,
        level="debug",
        roles=("disk", "tape"),
        ports=(1, 2),
        drives=(DriveConfig(name="a"), DriveConfig(name="b", slots=9)),
        labels={"site": "north"},
        catalog=CatalogConfig(file=Path("/abs/c"), cache=64 * 1024 * 1024),
    )


def test_a_drop_in_beats_the_file_and_the_environment_beats_both(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "20-b.toml").write_text('level = "debug"\nlease = "30s"\n')
    (tmp_path / "conf.d" / "10-a.toml").write_text('lease = "25s"\n[catalog]\ncache = "1KiB"\n')
    config = load(
        tmp_path,
        MINIMAL,
        CONTROLLER_LEASE="40s",
        CONTROLLER_CATALOG_CACHE="2KiB",
        CONTROLLER_ROLES="disk, tape",
        CONTROLLER_PORTS="5,6",
        CONTROLLER_IS_STRICT="false",
        CONTROLLER_RATIO="0.25",
    )
    assert (config.level, config.lease, config.catalog.cache) == ("debug", 40.0, 2048)
    assert (config.roles, config.ports) == (("disk", "tape"), (5, 6))
    assert (config.is_strict, config.ratio) == (False, 0.25)


def test_variables_that_a_container_engine_sets_do_no_harm(tmp_path: Path) -> None:
    load(tmp_path, MINIMAL, CONTROLLER_SERVICE_HOST="10.0.0.1", CONTROLLER_PORT_7000_TCP="x")


def test_all_mistakes_are_reported_together_with_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "x.toml").write_text("surprise = 1\nratio = true\n")
    text = """
        config_version = 1
        lease = "2 fortnights"
        port = 70000
        is_strict = "yes"
        level = "loud"
        roles = "disk"
        ports = [1, "x", 70000]
        drives = [{ slots = 3 }, { name = "b", slots = 10, colour = "red" }, 5]
        labels = { site = 3 }
        [catalog]
        cache = -1
        file = 3
    """
    assert findings(tmp_path, text, CONTROLLER_RETRY="soon") == [
        "conf.d/x.toml: surprise: unknown key",
        "controller.toml: listen: missing",
        "controller.toml: catalog.file: must be a path",
        "controller.toml: catalog.cache: must be 0B or more",
        f"controller.toml: lease: not a duration: '2 fortnights' ({HINT})",
        f"environment variable CONTROLLER_RETRY: retry: not a duration: 'soon' ({HINT})",
        "controller.toml: port: must be 0 to 65535",
        "controller.toml: is_strict: must be true or false",
        "conf.d/x.toml: ratio: must be a number",
        "controller.toml: level: must be one of info, debug",
        "controller.toml: roles: must be a list",
        "controller.toml: ports[1]: must be a whole number",
        "controller.toml: ports[2]: must be 0 to 65535",
        "controller.toml: drives[0].name: missing",
        "controller.toml: drives[1].colour: unknown key",
        "controller.toml: drives[1].slots: must be 1 to 9",
        "controller.toml: drives[2]: must be a table",
        "controller.toml: labels: site: must be text",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "controller.toml: config_version: missing; this program reads 1"),
        ("config_version = 2", "controller.toml: config_version: 2 is not known; this program"),
        ("config_version = true", "controller.toml: config_version: True is not known"),
        ("config_version = ", "controller.toml: Invalid value"),
        (MINIMAL.replace("[catalog]", "[[catalog]]"), "catalog: must be a table"),
        (MINIMAL.replace('"tcp://x"', "{ a = 1 }"), "controller.toml: listen: must not be a table"),
        ("config_version = 1\nlease = '2m'\n", "lease: must be 1s to 60s"),
        ("config_version = 1\n#" + "x" * 1024 * 1024, "controller.toml: larger than 1MiB"),
    ],
)
def test_a_mistake_is_told_in_words(tmp_path: Path, text: str, told: str) -> None:
    assert any(told in finding for finding in findings(tmp_path, text))


def test_a_file_that_is_not_there_is_a_mistake_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_config(Config, tmp_path / "none.toml", env_prefix="X", environ={})


@dataclass(frozen=True, slots=True)
class Window:
    least: int = 1
    most: int = 2

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError("least is above most")


def test_a_dataclass_may_refuse_a_combination(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("config_version = 1\nleast = 3\n")
    with pytest.raises(ConfigError, match="least is above most"):
        load_config(Window, file, env_prefix="W", environ={})


@dataclass(frozen=True, slots=True)
class Unreadable:
    what: Any = 1


def test_a_field_type_that_nobody_can_read_is_a_bug(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("config_version = 1\nwhat = 3\n")
    with pytest.raises(AssertionError, match="knows no fields"):
        load_config(Unreadable, file, env_prefix="W", environ={})
