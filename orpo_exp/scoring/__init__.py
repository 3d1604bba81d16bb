"""Hidden states + index -> log-probabilities: the way from a model to PairLogps that every plugin shares.

Logits are made only where a token is scored, and a bounded number of them at a time: where one chunk does not hold them
all, they are made again in the backward pass instead of being kept.
"""

from orpo_exp.scoring.linear import LinearHead, head_of
from orpo_exp.scoring.pairs import by_span, captured_hidden, pair_logps, token_logps
from orpo_exp.scoring.softmax import WHOLE, Vocabulary

__all__ = ["WHOLE", "LinearHead", "Vocabulary", "by_span", "captured_hidden", "head_of", "pair_logps", "token_logps"]
