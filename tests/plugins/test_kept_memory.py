"""What is freed in training stays with the process: a large tensor after others costs no new pages."""

import subprocess
import sys

CODE = """
import resource, torch
from orpo_exp.plugins.processes import freed_memory_kept

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with freed_memory_kept():
    kept = min(new_pages() for _ in range(4))
print(kept, new_pages())
"""


def test_a_tensor_of_64_mib_takes_the_memory_of_one_before():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    kept, afterwards = map(int, done.stdout.split())  # of 16,384 pages of 4 KiB
    assert kept < 100
    assert afterwards > 1000
