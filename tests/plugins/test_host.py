"""What memory is left: control groups of both versions, and this machine's own."""

import mmap

import psutil
import torch

from orpo_exp.plugins import host


def test_what_control_groups_leave(tmp_path):
    """The group of this process in the second version, and a limit on all in the first; `max` is none."""
    second, first = tmp_path / "second", tmp_path / "first"
    for folder, limit, used in (
        (second, ("memory.max", "max"), "anon 5\nfile 900\n"),
        (second / "job", ("memory.max", "1000"), "anon 300\nfile 900\n"),
        (first, ("memory.limit_in_bytes", "2000"), "rss 1\ntotal_rss 150\n"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / limit[0]).write_text(limit[1] + "\n")
        (folder / "memory.stat").write_text(used)
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/elsewhere\n0::/job\n")
    kinds = tuple((root, *rest) for root, (_, *rest) in zip((second, first), host.KINDS, strict=True))
    assert sorted(host.limits(kinds, own)) == [700, 1850]
    assert host.limits(kinds, tmp_path / "none") == [1850]


def test_no_more_is_left_than_the_machine_has(monkeypatch):
    assert 0 < host.free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
    monkeypatch.setattr(host, "limits", lambda: [1234])
    assert host.free_bytes(torch.device("cpu")) == 1234


def test_a_process_holds_what_it_has_filled():
    before = host.held_now()
    with mmap.mmap(-1, 2**26) as filled:  # memory of its own, where torch might take what it has freed
        filled.write(bytes(2**26))
        assert host.held_now() - before > 0.9 * 2**26
    host.forget_peak(torch.device("cpu"))
