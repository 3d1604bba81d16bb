"""What the tests of adapters share."""

from pathlib import Path

import pytest
from adapters.small import save_llama


@pytest.fixture
def base(tmp_path: Path, pairs_file: Path) -> Path:
    """A folder with a model, beside one with pairs."""
    save_llama(tmp_path / "base")
    return tmp_path / "base"
