"""The process that points are forked from is clean: no pool of threads, no CUDA, no terminal."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from orpo_exp.launchers import local, server

pytestmark = pytest.mark.parallel


def looked_around(report: Path) -> None:
    """In a process forked from the server: what is there."""
    import sys

    import torch

    parent = os.getppid()
    report.write_text(
        json.dumps(
            {
                "threads": sorted(t.read_text().strip() for t in Path(f"/proc/{parent}/task").glob("*/comm")),
                "imported": [name for name in server.PRELOADED if name in sys.modules],
                "cuda": torch.cuda.is_initialized(),
                "session": os.getsid(parent) == parent,
                "streams": [os.readlink(f"/proc/{parent}/fd/{stream}") for stream in range(3)],
            }
        )
    )


def test_the_server_has_imported_all_and_started_nothing(tmp_path):
    before = dict(os.environ)
    local.start_server()
    assert dict(os.environ) == before
    report = tmp_path / "report.json"
    began = time.monotonic()
    process = multiprocessing.get_context("forkserver").Process(target=looked_around, args=(report,))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 0
    found = json.loads(report.read_text())
    assert set(found["threads"]) - {"jemalloc_bg_thd"} == {"python"}
    assert found["threads"].count("python") == 1
    assert found["imported"] == list(server.PRELOADED)
    assert "colossalai.booster.plugin" in found["imported"]
    assert not found["cuda"]
    assert found["session"]
    assert found["streams"] == [os.devnull] * 3

    began = time.monotonic()
    again = multiprocessing.get_context("forkserver").Process(target=looked_around, args=(report,))
    again.start()
    again.join(timeout=120)
    assert time.monotonic() - began < 3  # where importing takes ten seconds and more
