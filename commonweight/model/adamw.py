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

Where replicas **step alone** (`Training.averaging_rounds` over 1; DiLoCo, arXiv 2311.08105) each takes AdamW's steps
with its own gradient. In a round in which they average each takes one more for trial, from its parameters to W, and
what is averaged is A - W, A being the **anchor**, the parameters that they had averaged last. With that mean D all step
the anchor by SGD with Nesterov's momentum (torch's form), and go on from there, with moments of zero and their bias
corrected anew: so all are in one state again.

    V' = outer_momentum V + D
    A' = A - outer_learning_rate (D + outer_momentum V')                  parameters' = A'
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from commonweight.rules.spec import Training


class AdamW:
    """Steps named parameters in place; matrices decay, norm scales and the embedding don't.

    `moment1` and `moment2` are zero before the first step. The bias correction counts `Training.adam_steps`. Where
    training is asynchronous the `master` weights, at first copies of the parameters, are stepped instead; otherwise
    there are none. So it is with the `anchor`, and its `velocity`, at first zero, where replicas step alone.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], training: Training) -> None:
        self.round = 0
        """Which the next step ends."""
        self.moment1 = {name: torch.zeros_like(p.detach()) for name, p in parameters.items()}
        self.moment2 = {name: torch.zeros_like(p.detach()) for name, p in parameters.items()}
        self.master = {name: p.detach().clone() for name, p in parameters.items() if training.is_asynchronous}
        self.anchor = {name: p.detach().clone() for name, p in parameters.items() if training.steps_alone}
        self.velocity = {name: torch.zeros_like(anchor) for name, anchor in self.anchor.items()}
        self._training = training
        self._parameters = parameters
        self._looks_ahead = training.asynchrony == "look_ahead"
        self._beta1, self._beta2 = float(training.beta1), float(training.beta2)
        self._eps = float(training.adam_eps)
        kept = [name for name, p in parameters.items() if p.ndim == 1 or name == "embedding.E"]
        decayed = [name for name in parameters if name not in kept]
        self._groups = ((decayed, float(training.weight_decay)), (kept, 0.0))

    def state(self) -> dict[str, Tensor]:
        """All of `Training.optimizer_parts`, as "moment1.head.weight": the live tensors."""
        return {
            f"{part}.{name}": tensor
            for part in self._training.optimizer_parts
            for name, tensor in getattr(self, part).items()
        }

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
        self._step(self.master or self._parameters, self.moment1, self.moment2, gradients, learning_rate)
        self.round += 1

    @torch.no_grad()
    def movement(self, gradients: Mapping[str, Tensor], learning_rate: float) -> dict[str, Tensor]:
        """By parameter, how far the anchor is from where that step would lead: replicas that step alone average it."""
        tried, moment1, moment2 = (
            {name: tensor.detach().clone() for name, tensor in tensors.items()}
            for tensors in (self._parameters, self.moment1, self.moment2)
        )
        self._step(tried, moment1, moment2, gradients, learning_rate)
        return {name: anchor - tried[name] for name, anchor in self.anchor.items()}

    @torch.no_grad()
    def step_anchor(self, mean: Mapping[str, Tensor]) -> None:
        """Take the step that ends a round in which replicas that step alone average, by their mean `movement`."""
        momentum, rate = float(self._training.outer_momentum), float(self._training.outer_learning_rate)
        for name, anchor in self.anchor.items():
            velocity = self.velocity[name].mul_(momentum).add_(mean[name])
            self._parameters[name].copy_(anchor.add_(mean[name].add(velocity, alpha=momentum), alpha=-rate))
            self.moment1[name].zero_()
            self.moment2[name].zero_()
        self.round += 1

    def _step(
        self,
        weights: Mapping[str, Tensor],
        moment1: Mapping[str, Tensor],
        moment2: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        learning_rate: float,
    ) -> None:
        steps = self._training.adam_steps(self.round)
        count = next(iter(moment1.values())).new_full((), steps, dtype=torch.float32)
        for names, decay in self._groups:
            torch._fused_adamw_(
                [weights[name] for name in names],
                [gradients[name] for name in names],
                [moment1[name] for name in names],
                [moment2[name] for name in names],
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
