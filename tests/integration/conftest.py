"""A cluster of real processes for each test, stopped and looked over at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backplane.testing.cluster import LocalCluster, is_running
from controller.cli import main
from tests.site.warm import Warm

# The installed program is started by `LocalCluster.up` and `start_ctl`, and by test_ctl_local.py for every command.
LocalCluster.main = staticmethod(main)


@pytest.fixture(scope="session", autouse=True)
def warm() -> Iterator[None]:
    """Start clusters by forks of a process that has imported everything."""
    if LocalCluster.run_local is not None:  # the other folder's fixture came first
        yield
        return
    process = Warm()
    LocalCluster.run_local = staticmethod(process.run)
    yield
    LocalCluster.run_local = None
    process.close()


@pytest.fixture
def new_cluster(short_folder: Path) -> Iterator[Callable[..., LocalCluster]]:
    """Return a function that makes a cluster, not started yet."""
    made: list[LocalCluster] = []

    def make(**settings: object) -> LocalCluster:
        folder = short_folder / str(len(made))
        folder.mkdir()
        cluster = LocalCluster(folder, **settings)  # type: ignore[arg-type]
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        pids = cluster.pids()
        cluster.down()
        assert not [pid for pid in pids if is_running(pid)], "a daemon outlived its cluster"
