from collections.abc import Iterator

import pytest
from slurm.cluster import Cluster, missing_programs
from slurm.commands import Commands


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running Slurm with two nodes; the tests that want it are skipped where its programs are not installed."""
    if missing := missing_programs():
        pytest.skip(f"no Slurm to start here: {', '.join(missing)} not found (apt-get install slurm-wlm munge)")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def commands(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """The command line in a folder that all tests of the module share."""
    return Commands(cluster, tmp_path_factory.mktemp("work"))


@pytest.fixture(autouse=True)
def _no_jobs_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails must not leave its jobs to the next one."""
    yield
    if "cluster" in request.fixturenames:
        cluster: Cluster = request.getfixturevalue("cluster")
        for job in cluster.jobs():
            cluster.run("scancel", job, check=False)
