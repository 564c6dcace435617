"""The learning rate of each round."""

import math

from commonweight.rules.spec import Training


def learning_rate(training: Training, round_: int) -> float:
    """The step size at the end of `round_`: a linear warm-up, a half cosine (arXiv 1608.03983), then
    constant.

    Round w - 1 of w warm-up rounds is the first at full `learning_rate`; round w + decay_rounds and all later
    ones have `final_learning_rate`. Raises ValueError for a negative round.
    """
    if round_ < 0:
        raise ValueError(f"round {round_} doesn't exist: rounds count from 0")
    peak, final = float(training.learning_rate), float(training.final_learning_rate)
    if round_ < training.warmup_rounds:
        return peak * (round_ + 1) / training.warmup_rounds
    done = round_ - training.warmup_rounds
    if done >= training.decay_rounds:
        return final
    share = 0.5 * (1 + math.cos(math.pi * done / training.decay_rounds))
    return share * peak + (1 - share) * final  # exactly `peak` where share is 1
