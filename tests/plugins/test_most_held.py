"""What a process has held is its own, whatever started it."""

import subprocess
import sys

from orpo_exp.plugins.ranks import most_held

PRINT = "from orpo_exp.plugins.ranks import most_held; print(most_held())"


def test_what_a_large_process_starts_does_not_count_as_large():
    large = bytearray(600 * 2**20)
    large[:: 2**12] = b"\1" * len(large[:: 2**12])  # every page is there
    assert most_held() > 600 * 2**20
    started = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, check=True)
    assert int(started.stdout) < most_held() - 300 * 2**20
