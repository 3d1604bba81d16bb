"""Where the numbers go, under the names that ColossalChat gives them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from orpo_exp.losses.orpo import ORPO
from orpo_exp.metrics import Direction, Metric
from orpo_exp.tracking import RunInfo, Tracker, TrackerConfig
from orpo_exp.tracking.tensorboard import TensorBoard
from orpo_exp.tracking.weights_and_biases import WandB
from orpo_exp.types import Counts, LossOutput, PairLogps

if TYPE_CHECKING:
    from tqdm import tqdm

NAMES = {
    "loss": "loss",
    "rewards/chosen": "chosen_rewards",
    "rewards/rejected": "rejected_rewards",
    "rewards/margin": "margin",
    "log_odds_ratio": "log_odds_ratio",
    "ahead": "accuracy",
    "lr": "lr",
}
EVALUATED = ("loss", "chosen_rewards", "rejected_rewards", "log_odds_ratio", "accuracy")


class WithAccuracy(ORPO):
    """ORPO that also counts the pairs whose log odds ratio is above 0."""

    @property
    @override
    def terms(self) -> dict[str, Metric]:
        ahead = Metric("share of pairs with a log odds ratio above 0", good=Direction.max, level=(0.5, "chance"))
        return {**super().terms, "ahead": ahead}

    @override
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        output = super().__call__(policy, reference, weight, counts)
        output.per_pair["ahead"] = (output.per_pair["log_odds_ratio"] > 0).double()
        return output


def renamed(metrics: Mapping[str, float]) -> dict[str, float]:
    """ColossalChat's metrics; what it does not know keeps its name."""
    return {NAMES.get(name, name): value for name, value in metrics.items()}


class Scalars(TensorBoard):
    """Event files in the run's folder itself."""

    subfolder = ""

    @override
    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        super().log(step, split, renamed(metrics))


class Online(WandB):
    """Weights & Biases."""

    @override
    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        super().log(step, split, renamed(metrics))


class ResultFiles(Tracker):
    """The evaluation after each epoch, on the screen and in save_dir/eval_result_epoch<n>.txt, n from 0."""

    essential = True

    def __init__(self, folder: Path | None, steps_per_epoch: int, say: Any) -> None:
        super().__init__(TrackerConfig())
        self.folder, self.steps_per_epoch, self.say = folder, steps_per_epoch, say

    @override
    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if split != "eval" or step == 0:
            return
        told = renamed(metrics)
        text = "Evaluation Result:\n" + "".join(f"{name}: {told[name]}\n" for name in EVALUATED)
        self.say(text)
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"eval_result_epoch{step // self.steps_per_epoch - 1}.txt").write_text(text)


class Bar(Tracker):
    """A progress bar over all steps."""

    def __init__(self) -> None:
        super().__init__(TrackerConfig())
        self._bar: tqdm[Any] | None = None

    @override
    def start(self, run: RunInfo) -> None:
        from tqdm import tqdm

        self._bar = tqdm(desc="ORPO", total=run.total_steps, initial=run.resumed_from, unit="step")

    @override
    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if self._bar is not None and split == "train":
            self._bar.set_postfix(loss=f"{metrics['loss']:.4f}", accuracy=f"{metrics['ahead']:.2f}", refresh=False)
            self._bar.update(step - self._bar.n)

    @override
    def finish(self, result: Mapping[str, Any]) -> None:
        if self._bar is not None:
            self._bar.close()
