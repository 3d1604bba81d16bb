"""The page that `python -m orpo_exp --help` prints."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

HEAD = """\
orpo_exp: preference optimisation experiments with ORPO, its variants and baselines.

A run is composed from one option of each group below; `group=option` chooses, `key=value` sets a value.

  python -m orpo_exp +experiment=quickstart
      learn the toy task on this machine in a minute or two; nothing is downloaded
  python -m orpo_exp +experiment=orpo data=json data.path=pairs.jsonl model=hf model.path=Qwen/Qwen2.5-0.5B
      ORPO on your own preference pairs and a pretrained model
  python -m orpo_exp +experiment=orpo data=ultrafeedback_binarized model=qwen2.5_0.5b
      the same with a data set and a model that have a name of their own
  python -m orpo_exp +experiment=quickstart loss.lam=0.5 optimizer.lr=2e-3 seed=1
      change values
  python -m orpo_exp +experiment=quickstart processes=2
      the same curve on two processes; on GPUs the default is one process for each
  python -m orpo_exp --multirun +experiment=quickstart loss.lam=0,0.1,0.5 seed=0,1
      one run for each combination, and a summary of them; given again, it runs what is missing or failed
  python -m orpo_exp --multirun +experiment=lambda_sweep hydra/launcher=slurm hydra.launcher.partition=gpu
      the same as jobs of a Slurm cluster; without --multirun, a single run as a job

Options of each group; each is a file conf/<group>/<option>.yaml, where every key is explained
"""

FOOT = """
  --cfg job       show the composed configuration of a command instead of running it
  --config-dir D  look for options in the folder D as well, e.g. D/experiment/mine.yaml
  --multirun, -m  run every combination of comma-separated values
  hydra.run.dir=D where the run's folder is made; default outputs/<experiment>/<date>_<time>_<microseconds>
  sweep.name=N    a sweep's folder, sweeps/<experiment>/N; default a hash of what is swept

A run ends with the page that says where everything lies."""


def help_page(conf: Sequence[Path]) -> str:
    """The page, with the options that are there in the folders of `conf`, the package's own first, and the first line
    of each file."""
    lines = [HEAD]
    chosen = [entry for entry in OmegaConf.load(conf[0] / "config.yaml").defaults if isinstance(entry, DictConfig)]
    for group in ["experiment", *(str(key).removeprefix("override ") for entry in chosen for key in entry)]:
        lines.append(f"  {'+' if group == 'experiment' else ''}{group}")
        files = sorted(file for folder in conf for file in (folder / group).glob("*.yaml"))
        lines += [f"    {file.stem:<12} {summary(file)}" for file in files]
    return "\n".join([*lines, FOOT])


def summary(file: Path) -> str:
    """The first sentence of a configuration file's opening comment."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @package"):
            return line[2:].split(". ")[0].rstrip(".") + "."
    return ""
