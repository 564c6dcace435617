"""One program of a stage, by torch.compile: it fuses what lies between matrix products.

Its bits are its own: other than those of the stage as it is written, and of other compilers. So a machine that compiles
is of a numerics class of its own, and is audited by the tolerance between classes.
"""

import os
from pathlib import Path

import torch

from commonweight.errors import ConfigError
from commonweight.model.stage import Stage


def compile_stage(stage: Stage, folder: Path) -> None:
    """Compile the stage's passes for the spec's microbatches: half a minute, for a second stage like it none.

    What the compiler writes, for this process alone, goes to `folder`. Pending gradients are discarded. Raises
    ConfigError where there is no C++ compiler, or it fails.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    from torch._inductor import config  # 2 s, which nobody else pays

    config.compile_threads = 1  # no processes beside the worker's
    config.fx_graph_cache = False  # it reads pickles
    stage.run_module = torch.compile(stage.module, dynamic=False)
    training = stage.spec.training
    shape = training.microbatch_sequences, training.sequence_length
    boundary = torch.zeros(*shape, stage.spec.architecture.boundary_dim, dtype=stage.boundary_dtype)
    tokens = torch.zeros(shape[0], shape[1] + 1, dtype=torch.int64)
    try:
        pending = stage.forward(tokens, None if stage.is_first else boundary)
        stage.backward(pending, None if stage.is_last else boundary)
    except RuntimeError as error:
        raise ConfigError(
            f"torch.compile fails: {str(error).strip().splitlines()[0]:.300} It needs a C++ compiler, such as g++. "
            "Install one, or leave out --compile."
        ) from error
    stage.discard_gradients()
