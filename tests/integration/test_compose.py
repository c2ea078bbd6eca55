"""The compose file, tried with a real engine: three movers, a backup, a restore, equal bytes.

Skips by name where no engine runs and none can be started.  As root, a `dockerd` is started with a socket, a network
namespace and mounts of its own: no bridge, no firewall rule and no mount of the machine is touched, and all of them
end with it.  Everything made here is removed again: containers, volumes, networks, images, the engine.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MIRROR_SUITE = "bookworm"
BASE_IMAGE = "serverless-backup-test-base"
IMAGE = "serverless-backup-test"
PROJECT = "serverless-backup-test"
VOLUME_BYTES = 24 * 1024 * 1024
START_S = 30.0
WAIT_FOR_NODES = """
stands() {
    [ "$(ctl mover list | grep --count --word-regexp idle)" = 3 ] &&
        [ "$(ctl node list | grep --count --word-regexp online)" = 2 ]
}
for second in $(seq 60); do
    stands && break
    sleep 1
done
stands
"""

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("engine"),  # one engine, one image
]


@dataclass(frozen=True)
class Engine:
    """A container engine and the command that composes."""

    environment: dict[str, str]
    compose: tuple[str, ...]

    def docker(self, *arguments: str, **rest: Any) -> subprocess.CompletedProcess[str]:
        return self._run(["docker", *arguments], **rest)

    def composed(self, *arguments: str, **rest: Any) -> subprocess.CompletedProcess[str]:
        return self._run([*self.compose, "--project-name", PROJECT, *arguments], **rest)

    def shell(self, *lines: str, mount: Path | None = None) -> str:
        """Run lines with `ctl` inside the cluster, with `mount` at /mnt; all have to succeed.

        In one container, because the start of each costs several times as much as what `ctl` does in it.
        """
        volume = ["--volume", f"{mount}:/mnt"] if mount else []
        sh = ["run", "--rm", "-T", *volume, "--entrypoint", "sh", "ctl"]
        return self.composed(*sh, "-euxc", "\n".join(lines)).stdout

    def _run(self, command: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=DEPLOY,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{shlex.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine: the one that runs, or one of our own."""
    compose = find_compose()
    if shutil.which("docker") is None or compose is None:
        pytest.skip("no container engine: docker and docker-compose are not installed")
    environment = {
        **os.environ,
        "BASE": BASE_IMAGE,
        "IMAGE": IMAGE,
        "CONTROLLER_PORT": "0",
        "NBD_PORT": "0",
    }
    if answers(environment):
        yield Engine(environment, compose)
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("no container engine: none answers, and only root can start one")
    # Not below pytest's own folder: a unix socket's path has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="dockerd-"))
    address = f"unix://{folder}/socket"
    environment["DOCKER_HOST"] = address
    with start_engine(folder, address) as process:
        try:
            if not wait_until_it_answers(process, environment):
                log = (folder / "log").read_text(errors="replace")[-400:]
                pytest.skip(f"no container engine: dockerd does not start here: {log}")
            yield Engine(environment, compose)
        finally:
            process.terminate()
            process.wait(timeout=60)
            shutil.rmtree(folder)


def find_compose() -> tuple[str, ...] | None:
    """Compose version 1 is a program, version 2 a plug-in; both must work."""
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return ("docker", "compose") if plugin.returncode == 0 else None


def answers(environment: dict[str, str]) -> bool:
    done = subprocess.run(["docker", "info"], env=environment, capture_output=True, check=False)
    return done.returncode == 0


def start_engine(folder: Path, address: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("wb") as log:
        own = {name: str(folder / name) for name in ("data", "exec", "pid")}
        return subprocess.Popen(
            [
                *("unshare", "--net", "--mount", "--"),
                *("dockerd", "--host", address, "--data-root", own["data"]),
                *("--exec-root", own["exec"], "--pidfile", own["pid"]),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def wait_until_it_answers(process: subprocess.Popen[bytes], environment: dict[str, str]) -> bool:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        if answers(environment):
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Our image, built on a base that comes from a Debian mirror and not from a registry of images."""
    make_wheels()
    make_base(engine, tmp_path_factory.mktemp("base"))
    try:
        engine.docker(
            *("build", "--quiet", "--build-arg", f"BASE={BASE_IMAGE}", "--tag", IMAGE),
            *("--file", str(DEPLOY / "Dockerfile"), str(ROOT)),
        )
        yield IMAGE
    finally:
        engine.docker("image", "rm", "--force", IMAGE, BASE_IMAGE, check=False)
        stages = "label=serverless-backup.stage=build"
        engine.docker("image", "prune", "--force", "--filter", stages, check=False)


def make_wheels() -> None:
    """The project as it is now, and its dependencies as wheels: those of `make wheels`, or fetched afresh."""
    wheels = ROOT / "build" / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    for old in wheels.glob("serverless_backup-*.whl"):
        old.unlink()
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run(
        [*pip, "wheel", "--quiet", *offline, "--wheel-dir", str(wheels), str(ROOT)], check=True
    )
    resolve = [*pip, "install", "--quiet", "--dry-run", "--ignore-installed", "--no-index"]
    resolve += ["--find-links", str(wheels), "serverless-backup"]
    if subprocess.run(resolve, capture_output=True, check=False).returncode == 0:
        return
    fetch = [
        *pip,
        "wheel",
        "--quiet",
        "--no-build-isolation",
        "--wheel-dir",
        str(wheels),
        str(ROOT),
    ]
    fetched = subprocess.run(fetch, capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip("no wheels for the image: run `make wheels` where there is a network")


def make_base(engine: Engine, folder: Path) -> None:
    """A minimal Debian with Python, made by debootstrap."""
    if engine.docker("image", "inspect", BASE_IMAGE, check=False).returncode == 0:
        return
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip(f"no base image: {BASE_IMAGE} is not there, and debootstrap cannot make it")
    root = folder / "root"
    # Unpacked and not configured, which takes half the processor time: the image needs the files and two tables.
    command = ["debootstrap", "--foreign", "--variant=minbase", "--include=python3,python3-venv"]
    made = subprocess.run([*command, MIRROR_SUITE, str(root)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no base image: debootstrap reaches no Debian mirror")
    archives = root / "var/cache/apt/archives"
    for package in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(root)], check=True)
    shutil.rmtree(archives)
    for table in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{table}.master", root / "etc" / table)
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
        imported = subprocess.run(
            ["docker", "import", "-", BASE_IMAGE],
            stdin=tar.stdout,
            env=engine.environment,
            capture_output=True,
            check=False,
        )
    shutil.rmtree(root)
    assert imported.returncode == 0, imported.stderr


@pytest.fixture(scope="module")
def cluster(engine: Engine, image: str) -> Iterator[Engine]:
    assert image == IMAGE
    try:
        engine.composed("up", "--detach", "--no-build", "--scale", "mover=3")
        yield engine
    finally:
        engine.composed("down", "--volumes", "--remove-orphans", "--timeout", "20", check=False)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that the unprivileged user of the containers may write to, through all its parents."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o005)
    tmp_path.chmod(0o777)
    return tmp_path


def test_a_cluster_in_containers_backs_up_restores_and_remembers_after_a_restart(
    cluster: Engine, shared: Path
) -> None:
    """The story of `make demo`, told to containers; the init service must not make new keys at the next start."""
    image = shared / "input.img"
    image.write_bytes(os.urandom(VOLUME_BYTES))
    image.chmod(0o644)  # for the user of the containers, whatever our mask is

    cluster.shell(
        WAIT_FOR_NODES,
        "ctl tape add LTO001L8 --capacity 1GiB",
        "ctl volume create office --from /mnt/input.img",
        "ctl submit backup office --wait",
        mount=shared,
    )
    cluster.shell(
        "ctl submit restore office/latest --new copy --wait",
        "ctl submit verify office/latest --wait",
        "ctl volume export copy /mnt/output.img",
        mount=shared,
    )

    assert image.read_bytes() == (shared / "output.img").read_bytes()

    cluster.composed("restart", "--timeout", "20")
    cluster.composed("up", "--detach", "--no-build", "--scale", "mover=3")
    cluster.shell(WAIT_FOR_NODES, "ctl submit verify office/latest --wait")
    # And once as a person would: the command that the service has.
    listed = cluster.composed("run", "--rm", "-T", "ctl", "--output", "json", "backup", "list")
    assert len(json.loads(listed.stdout)["backups"]) == 1
