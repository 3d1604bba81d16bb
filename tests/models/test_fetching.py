"""What a hub holds is in the cache before jobs are submitted that ask no hub."""

import pytest

from orpo_exp.launchers.slurm import OFFLINE
from orpo_exp.models import MODELS
from orpo_exp.schema import ConfigError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A cache that knows one model, by its snapshot."""
    from huggingface_hub import constants

    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def pretrained(path: str):
    kind = MODELS.named("hf")
    return kind(kind.Config(path=path))


def test_a_snapshot_that_is_there_is_enough(hub, monkeypatch):
    asked = []
    import huggingface_hub

    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **given: asked.append((args, given)) or real(*args, **given)
    )
    pretrained("owner/name").fetch()
    ((args, given),) = asked
    assert args == ("owner/name",)
    assert "*.safetensors" in given["allow_patterns"]


def test_what_is_nowhere_is_refused(hub):
    with pytest.raises(ConfigError, match=r"model\.path"):
        pretrained("owner/other").fetch()


def test_a_folder_is_not_asked_for(hub, tmp_path):
    pretrained(str(tmp_path)).fetch()


def test_who_has_set_it_otherwise_has_the_say():
    """In a shell, as the job's script has them: before the lines of `setup`."""
    import subprocess

    def value(before: str, setup: str) -> str:
        script = "\n".join([before, *OFFLINE, setup, "echo $HF_HUB_OFFLINE"])
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env={}).stdout.strip()

    assert value("", "") == "1"
    assert value("", "export HF_HUB_OFFLINE=0") == "0"
    assert value("export HF_HUB_OFFLINE=0", "") == "0"
