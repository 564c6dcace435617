"""AdamW (arXiv 1711.05101) with its state in plain sight.

The arithmetic is torch's fused kernel, bit for bit that of `torch.optim.AdamW(fused=True)`. That class isn't used
because making one imports torch's compiler, 1.5 s of CPU time in every worker, and hides the moments that a stage
commits to and saves.

**Asynchronous** training (`Training.asynchrony`) lets a round begin while the one before still waits for its gradient.
There the optimizer has weights of its own, the master weights V, and the parameters C that round r computes with follow
from the version before alone, so that each gradient is one step late. Version 0 has C = V. After round r

    delayed       C' = V                                                  (PipeDream-2BW, arXiv 2006.09503)
    look_ahead    C' = V + the step that the moments so far predict       (XPipe, arXiv 1911.04610; 2505.01099)
    both          V' = V stepped with the gradient that round r has at C

The prediction is AdamW's own step at round r's learning rate, decay included, with the moments that round r begins
with; none in round 0, which has none. What a round computes with is what is committed to, served and audited.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from commonweight.rules.spec import Training


class AdamW:
    """Steps named parameters in place; matrices decay, norm scales and the embedding don't.

    `moment1` and `moment2` are zero before the first step. The bias correction counts steps from round 0. Where
    training is asynchronous the `master` weights, at first copies of the parameters, are stepped instead; otherwise
    there are none.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], training: Training) -> None:
        self.round = 0
        """Which the next step ends."""
        self.moment1 = {name: torch.zeros_like(p.detach()) for name, p in parameters.items()}
        self.moment2 = {name: torch.zeros_like(p.detach()) for name, p in parameters.items()}
        self.master = {name: p.detach().clone() for name, p in parameters.items() if training.is_asynchronous}
        self._weights: Mapping[str, Tensor] = self.master or parameters
        self._looks_ahead = training.asynchrony == "look_ahead"
        self._beta1, self._beta2 = float(training.beta1), float(training.beta2)
        self._eps = float(training.adam_eps)
        kept = [name for name, p in parameters.items() if p.ndim == 1 or name == "embedding.E"]
        decayed = [name for name in parameters if name not in kept]
        self._groups = ((decayed, float(training.weight_decay)), (kept, 0.0))

    def state(self) -> dict[str, Tensor]:
        """All of `Training.optimizer_parts`, as "moment1.head.weight": the live tensors."""
        parts = {"moment1": self.moment1, "moment2": self.moment2, "master": self.master}
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    @torch.no_grad()
    def write_next(self, parameters: Mapping[str, Tensor], learning_rate: float) -> None:
        """Where training is asynchronous, make these the parameters of the version that the next step leads to."""
        if not self.master:
            return
        predicts = self._looks_ahead and self.round > 0
        for names, decay in self._groups:
            for name in names:
                following = parameters[name].copy_(self.master[name])
                if predicts:
                    divisor = self.moment2[name].sqrt().div_(math.sqrt(1 - self._beta2**self.round)).add_(self._eps)
                    following.mul_(1 - learning_rate * decay)
                    size = learning_rate / (1 - self._beta1**self.round)
                    following.addcdiv_(self.moment1[name], divisor, value=-size)

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        """Take the step that ends the round."""
        self.round += 1
        count = next(iter(self.moment1.values())).new_full((), self.round, dtype=torch.float32)
        for names, decay in self._groups:
            torch._fused_adamw_(
                [self._weights[name] for name in names],
                [gradients[name] for name in names],
                [self.moment1[name] for name in names],
                [self.moment2[name] for name in names],
                [],
                [count] * len(names),
                lr=learning_rate,
                beta1=self._beta1,
                beta2=self._beta2,
                weight_decay=decay,
                eps=self._eps,
                amsgrad=False,
                maximize=False,
            )
