"""AdamW (arXiv 1711.05101) with its state in plain sight.

The arithmetic is torch's fused kernel, bit for bit that of `torch.optim.AdamW(fused=True)`. That class isn't used
because making one imports torch's compiler, 1.5 s of CPU time in every worker, and hides the moments that a stage
commits to and saves.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from commonweight.rules.spec import Training


class AdamW:
    """Steps named parameters in place; matrices decay, norm scales and the embedding don't.

    `moment1` and `moment2` are zero before the first step. The bias correction counts steps from round 0.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], training: Training) -> None:
        self.moment1 = {name: torch.zeros_like(p.detach()) for name, p in parameters.items()}
        self.moment2 = {name: torch.zeros_like(p.detach()) for name, p in parameters.items()}
        self._parameters = parameters
        self._beta1, self._beta2 = float(training.beta1), float(training.beta2)
        self._eps = float(training.adam_eps)
        kept = [name for name, p in parameters.items() if p.ndim == 1 or name == "embedding.E"]
        decayed = [name for name in parameters if name not in kept]
        self._groups = ((decayed, float(training.weight_decay)), (kept, 0.0))

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], round_: int, learning_rate: float) -> None:
        """Take the step that ends `round_`."""
        count = next(iter(self.moment1.values())).new_full((), round_ + 1, dtype=torch.float32)
        for names, decay in self._groups:
            torch._fused_adamw_(
                [self._parameters[name] for name in names],
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
