"""Greedy continuations from whole forward passes, for models in which nothing can be kept between two of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def greedy(
    prompts: Sequence[Tensor], max_new_tokens: int, eos: int, following: Callable[[Sequence[Tensor]], list[int]]
) -> list[list[int]]:
    """The continuation of each prompt, up to `eos` and without it. Every text goes whole through the model for every
    token: these are few.

    following: gives the token that follows each of some texts, 1-D int64 each; the same on every rank.
    """
    texts = [prompt.long() for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        if not going:
            break
        for i, token in zip(going, following([texts[i] for i in going]), strict=True):
            answers[i].append(token)
            texts[i] = torch.cat([texts[i], torch.tensor([token])])
        going = [i for i in going if answers[i][-1] != eos]
    return [answer[:-1] if answer[-1:] == [eos] else answer for answer in answers]
