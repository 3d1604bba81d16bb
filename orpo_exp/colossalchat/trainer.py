"""ColossalChat's ORPOTrainer, as a face over the loop and the loss of this package."""

import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from orpo_exp.colossalchat.batches import Stream, gathered
from orpo_exp.colossalchat.reports import Bar, Online, ResultFiles, Scalars, WithAccuracy
from orpo_exp.colossalchat.saves import EpochFolders
from orpo_exp.data.order import Order
from orpo_exp.data.tokenize import TokenizedData
from orpo_exp.layouts.padded import Padded
from orpo_exp.losses.orpo import Average, Odds
from orpo_exp.losses.schedules import Constant
from orpo_exp.models.head import check_architecture, finish_logits
from orpo_exp.plugins import PLUGINS, Place, Plugin
from orpo_exp.plugins.colossal import colossalai_imported
from orpo_exp.tracking import RunInfo, Tracker, Trackers
from orpo_exp.tracking.weights_and_biases import Mode
from orpo_exp.training import Loop
from orpo_exp.training.settings import TrainConfig
from orpo_exp.training.sharing import Sharing
from orpo_exp.training.stop import StopRequest

with colossalai_imported():  # the caller's script uses it before there is a trainer
    import colossalai  # noqa: F401

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Loader = Iterable[Any]


class ORPOTrainer:
    """Takes what ColossalChat's takes and leaves what it leaves; the loss is `conf/loss/orpo_colossalchat.yaml`'s.

    actor, actor_optim, actor_lr_scheduler: boosted by `booster`, whose plugin may be any of ColossalAI's that this
    package knows; gradients are clipped where it was told so. max_epochs: up to which epoch, from start_epoch on.
    lam: weight of the odds-ratio term. apply_loss_mask: whether answers alone are scored. accumulation_steps: batches
    of each rank's loader in an optimizer step. save_interval: steps between two checkpoints in save_dir; 0: none.

    What is otherwise than there: a step's loss is the mean over all of its batches, on all ranks, however they are
    split. An epoch's last step may have fewer batches, none goes into the next epoch. Padding is not computed, and
    neither it nor anything behind an answer is scored. Loaders get another order in each epoch (`set_epoch`). Metrics
    are means over all pairs. Steps are counted on where the caller has loaded a checkpoint.

    Raises ValueError for what cannot be trained so, before anything is.
    """

    def __init__(
        self,
        actor: Any,
        booster: Any,
        actor_optim: "Optimizer",
        plugin: Any = None,
        actor_lr_scheduler: "LRScheduler | None" = None,
        tokenizer: Any = None,
        max_epochs: int = 1,
        lam: float = 0.1,
        apply_loss_mask: bool = True,
        accumulation_steps: int = 1,
        start_epoch: int = 0,
        save_interval: int = 0,
        save_dir: str | None = None,
        coordinator: Any = None,
    ) -> None:
        if save_interval and save_dir is None:
            raise ValueError(f"save_interval is {save_interval} and save_dir is not given: say where to save")
        if actor_lr_scheduler is None:
            raise ValueError(
                "actor_lr_scheduler is not given; torch's ConstantLR(optimizer, factor=1.0) changes nothing"
            )
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps is {accumulation_steps}; it is a whole number from 1")
        self.optimizer, self.scheduler, self.apply_loss_mask = actor_optim, actor_lr_scheduler, apply_loss_mask
        self.max_epochs, self.start_epoch, self.accumulation_steps = max_epochs, start_epoch, accumulation_steps
        self.save_interval, self.seed = save_interval, torch.initial_seed()
        self.save_dir = None if save_dir is None else Path(save_dir)
        # as conf/loss/orpo_colossalchat.yaml has it
        settings = WithAccuracy.Config(lam=lam, odds=Odds.token, average=Average.batch, epsilon=1e-4)
        self.loss = WithAccuracy(settings)
        self.plugin = adopted(plugin or booster.plugin, booster, actor, actor_optim)
        with colossalai_imported():
            from colossalai.cluster import DistCoordinator

        self.coordinator = coordinator or DistCoordinator()
        self.settings = {"lam": lam, "accumulation_steps": accumulation_steps, "apply_loss_mask": apply_loss_mask}
        self.saves = EpochFolders(self.save_dir or Path(), self.plugin, self.settings, tokenizer)
        self.begin_from: Path | None = None
        self.eval_metrics: dict[str, float] = {}
        self.num_train_step = 0

    def resume(self, checkpoint: str) -> None:
        """Let `fit` go on from a folder `epoch-.._step-..` in save_dir, bit for bit, where script and loaders are those
        that wrote it: the learning rate's scheduler as new, the same `torch.manual_seed` before this trainer was made,
        the same number of ranks."""
        self.begin_from = Path(checkpoint)

    def fit(
        self,
        train_preference_dataloader: Loader,
        eval_preference_dataloader: Loader | None = None,
        log_dir: str | None = None,
        use_wandb: bool = False,
    ) -> None:
        """Train, and evaluate after each epoch.

        The loaders give each rank its part, as `plugin.prepare_dataloader` makes them: dicts of (pairs, length) tensors
        under chosen_input_ids, chosen_attention_mask, chosen_loss_mask, reject_input_ids, reject_attention_mask,
        reject_loss_mask. log_dir: TensorBoard's event files go to log_dir/orpo/<time>. use_wandb: to Weights & Biases
        as well, project Coati-orpo; WANDB_MODE says otherwise than online.

        Raises TrainingDiverged before an update that is not finite, and NotSaved.
        """
        if use_wandb and log_dir is None:
            raise ValueError("use_wandb is true and log_dir is not given: say where its files go")
        ranks = self.plugin.ranks
        stream = self.saves.stream = Stream(
            train_preference_dataloader,
            ranks,
            self.accumulation_steps,
            self.apply_loss_mask,
            self.start_epoch,
            self.seed,
        )
        held_out = gathered(ranks, iter(eval_preference_dataloader or ()), self.apply_loss_mask)
        max_steps = self.max_epochs * stream.steps_per_epoch
        trackers = Trackers(self._trackers(log_dir, use_wandb, stream) if ranks.is_main else [])
        loop = Loop(
            train=TrainConfig(eval_every=stream.steps_per_epoch, save_every=self.save_interval),
            plugin=self.plugin,
            sharing=Sharing(Padded(Padded.Config()), ranks, self.loss.needs, stream.batch_size, most_tokens=0),
            loss=self.loss,
            lam_schedule=Constant(Constant.Config(), self.loss.weight, max_steps),
            learning_rate=lambda step: self._rate(),
            data=TokenizedData(stream.draw, None, held_out, [], {}, truncated=0, max_length=0),
            order=Order(None, 1, seed=0),  # a position is a step: the caller's sampler says what is in it
            trackers=trackers,
            reference=None,
            max_steps=max_steps,
            until=max_steps,
            checkpoints=self.saves,
            stop=StopRequest(),
            note_step=lambda step: self.scheduler.step(),
            step=stream.begun,
        )
        if self.begin_from is not None:
            loop.resume(self.begin_from)
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of steps without the optimizer's
                for _ in range(loop.step):
                    self.scheduler.step()
        folder = Path(log_dir or ".") / "orpo" / time.strftime("%Y-%m-%d_%H:%M:%S")
        trackers.start(RunInfo(folder, "orpo", {**self.settings, "max_epochs": self.max_epochs}, max_steps, loop.step))
        status = "failed"
        try:
            loop.run()
            status = "completed"
        finally:
            self.eval_metrics, self.num_train_step = loop.eval_metrics, loop.step
            trackers.finish({"status": status, "eval": loop.eval_metrics})

    def _trackers(self, log_dir: str | None, use_wandb: bool, stream: Stream) -> list[Tracker]:
        trackers: list[Tracker] = [
            Bar(),
            ResultFiles(self.save_dir, stream.steps_per_epoch, self.coordinator.print_on_master),
        ]
        if log_dir is not None:
            trackers.append(Scalars(Scalars.Config()))
        if use_wandb:
            mode = Mode(os.environ.get("WANDB_MODE", "online"))
            trackers.append(Online(Online.Config(mode=mode, project="Coati-orpo")))
        return trackers

    def _rate(self) -> float:
        """The learning rate that the caller's scheduler says."""
        rates = {float(group["lr"]) for group in self.optimizer.param_groups}
        if len(rates) > 1:
            raise ValueError(
                f"the optimizer's groups have the learning rates {sorted(rates)}; give all of them the same"
            )
        return rates.pop()


def adopted(plugin: Any, booster: Any, actor: Any, optimizer: Any) -> Plugin:
    """This package's plugin around what the caller has boosted by one of ColossalAI's. Raises ValueError where it
    cannot be trained so."""
    import torch.distributed as dist

    if booster.mixed_precision is not None:
        raise ValueError("Booster(mixed_precision=...) scales the loss by itself; give the plugin a precision instead")
    found = next((told for of in PLUGINS if (told := of.of_caller(plugin)) is not None), None)
    if found is None:
        allowed = "TorchDDPPlugin, LowLevelZeroPlugin, HybridParallelPlugin, GeminiPlugin"
        raise ValueError(f"the plugin is {type(plugin).__name__}; ORPOTrainer trains with {allowed}")
    model = actor.unwrap()
    if dropping := [name for name, module in model.named_modules() if drops(module)]:
        raise ValueError(
            f"the actor drops activations ({dropping[0]} and {len(dropping) - 1} more): the loss scores each batch "
            "twice and must see the same numbers. Set dropout to 0, e.g. by ColossalChat's disable_dropout(model)."
        )
    config, max_grad_norm = found
    rank = dist.get_rank()
    place = Place(rank, int(os.environ.get("LOCAL_RANK", rank)), dist.get_world_size())
    ours = PLUGINS.build(config, place)
    with torch.random.fork_rng(devices=[]):
        check_architecture(lambda small: type(model)._from_config(small, attn_implementation="eager"), model.config)
    ours.adopt(actor, optimizer, finish_logits(model.config), max_grad_norm)
    return ours


def drops(module: nn.Module) -> bool:
    """Whether it drops activations in training."""
    own = [value for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]
    return max(own, default=0.0) > 0 or (isinstance(module, nn.Dropout) and module.p > 0)
