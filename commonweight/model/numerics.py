"""Which machines compute the same bits."""

from hashlib import sha256

import torch

from commonweight.model.hashing import tensors_hash
from commonweight.model.stage import Stage
from commonweight.rules.spec import ModelSpec

PROBE_VOCAB = 256
"""The probe's vocabulary at most: a large model's table and head would take gigabytes."""


def numerics_class(device: str | torch.device, spec: ModelSpec, *, compiles: bool = False) -> str:
    """One line, at most 200 characters; two workers with the same compute the same bits.

    It names torch's build, the device, what decides bits on a CPU (instruction set, torch's thread count in this
    process), and the compute dtype: "torch 2.13.0+cpu, cpu AVX512, 1 thread, float32, probe 5d3c…". Names miss what a
    maths library chooses by itself, by the processor's maker for one; the probe doesn't. It is a hash of what this
    process computes for one layer of the spec's shape, embedding, head and step included. What is compiled says so:
    "float32 compiled".
    """
    device = torch.device(device)
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        where = f"{device.type} {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads != 1)}"
    dtype = spec.training.compute_dtype + " compiled" * compiles
    return f"torch {torch.__version__}, {where:.100}, {dtype}, probe {_probe(spec, device).hex()[:16]}"


def _probe(spec: ModelSpec, device: torch.device) -> bytes:
    architecture = spec.architecture.model_copy(
        update={"n_layers": 1, "vocab_size": min(spec.architecture.vocab_size, PROBE_VOCAB)}
    )
    stage = Stage(spec.model_copy(update={"architecture": architecture, "stages": 1}), 0, device=device)
    shape = (spec.training.microbatch_sequences, spec.training.sequence_length + 1)
    tokens = (torch.arange(shape[0] * shape[1]) * 31 % 1009 % architecture.vocab_size).view(shape)
    forward = stage.forward(tokens, None)
    logits = tensors_hash({"loss": forward.result})
    stage.backward(forward, None)
    stage.step()
    return sha256(logits + stage.state_root()).digest()
