"""What ColossalChat's trainer is given: batches as its collator makes them, and a model that a caller has boosted."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

LENGTH, RATE = 20, 0.1
Texts = tuple[Sequence[int], Sequence[int], Sequence[int]]  # prompt, chosen, rejected


def sample(texts: Texts, side: str = "right", pad: int = 0) -> dict[str, Tensor]:
    """One pair, (LENGTH,) each."""
    prompt, *answers = texts
    of: dict[str, Tensor] = {}
    for name, answer in zip(("chosen", "reject"), answers, strict=True):
        padding = LENGTH - len(prompt) - len(answer)
        columns = {
            "input_ids": ([*prompt, *answer], pad),
            "attention_mask": ([True] * (len(prompt) + len(answer)), False),
            "loss_mask": ([False] * len(prompt) + [True] * len(answer), False),
        }
        for key, (values, filler) in columns.items():
            filled = [filler] * padding
            of[f"{name}_{key}"] = torch.tensor([*values, *filled] if side == "right" else [*filled, *values])
    return of


def batch(*texts: Texts, side: str = "right", pad: int = 0) -> dict[str, Tensor]:
    """Several pairs, (pairs, LENGTH) each."""
    samples = [sample(of, side, pad) for of in texts]
    return {key: torch.stack([of[key] for of in samples]) for key in samples[0]}


def drawn(pairs: int, seed: int = 0) -> list[Texts]:
    """Pairs of uneven lengths; the answers are told apart by their tokens."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(2, 8, (), generator=generator))
        return torch.randint(low, high, (length,), generator=generator).tolist()

    return [(ids(1, 40), ids(1, 20), ids(20, 40)) for _ in range(pairs)]


def loader(texts: Sequence[Texts], batch_size: int, shuffle: bool = False) -> DataLoader:
    """A DataLoader over them, a generator of its own left out."""
    return DataLoader([sample(of) for of in texts], batch_size=batch_size, shuffle=shuffle)


def llama(**settings):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes, **settings))


def boosted(plugin: str = "TorchDDPPlugin", model=None, optimizer=torch.optim.SGD, **settings):
    """What a caller hands over: the actor, and the rest by name."""
    from colossalai.booster import Booster
    from colossalai.booster import plugin as plugins

    model = model or llama()
    optimizer = optimizer(model.parameters(), lr=RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    with warnings.catch_warnings(action="ignore"):
        booster = Booster(plugin=getattr(plugins, plugin)(**settings))
        actor, optimizer, *_ = booster.boost(model, optimizer, lr_scheduler=scheduler)
    return {"actor": actor, "booster": booster, "actor_optim": optimizer, "actor_lr_scheduler": scheduler}


def weights(actor) -> dict[str, torch.Tensor]:
    return {name: of.detach().clone() for name, of in actor.unwrap().named_parameters()}
