"""What is freed stays with the process: a large tensor after others costs no new pages."""

import subprocess
import sys

CODE = """
import resource, torch
from orpo_exp.plugins.processes import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(min(new_pages() for _ in range(4)))
"""


def test_a_tensor_of_64_mib_takes_the_memory_of_one_before():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # of 16,384
