"""Files of what a stage took in a round and what was made of it: bench processes hand them to each other."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from commonweight.bench.replays import Made, Taken, Tensors
from commonweight.model.sketch import Sketched


def write_round(path: Path, taken: Taken, made: Made) -> None:
    """Both into one file."""
    tensors = {f"state/{name}": tensor for name, tensor in taken.state.items()}
    tensors |= {f"stale/{name}": tensor for name, tensor in taken.stale.items()}
    for what, side in (("tokens", taken.tokens), ("code", taken.codes), ("gradient", taken.gradients)):
        tensors |= {f"{what}/{n}": tensor for n, tensor in enumerate(side) if tensor is not None}
    tensors["round/"] = torch.tensor(taken.round)
    _save(path, tensors | _tensors(made))


def write_made(path: Path, made: Made) -> None:
    """Without what it was computed from."""
    _save(path, _tensors(made))


def read_round(path: Path) -> tuple[Taken, Made]:
    """What `write_round` wrote."""
    tensors = load_file(path)
    tokens, codes, gradients = (_part(tensors, what) for what in ("tokens", "code", "gradient"))
    numbers = [str(n) for n in range(len(tokens))]
    taken = Taken(
        int(tensors["round/"]),
        _part(tensors, "state"),
        [tokens[n] for n in numbers],
        [codes.get(n) for n in numbers],
        [gradients.get(n) for n in numbers],
        _part(tensors, "stale"),
    )
    return taken, _made(tensors)


def read_made(path: Path) -> Made:
    """What `write_made` wrote."""
    return _made(load_file(path))


def _save(path: Path, tensors: Tensors) -> None:
    # Copies: safetensors refuses tensors that share memory.
    save_file({name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}, path)


def _tensors(made: Made) -> Tensors:
    tensors = {f"next/{name}": tensor for name, tensor in made.next_state.items()}
    tensors |= {f"summed/{name}": tensor for name, tensor in made.gradient.items()}
    tensors |= {f"sketch/{n}": sketch.sums for n, sketch in made.sketches.items()}
    tensors |= {f"norm/{n}": torch.tensor(sketch.norm, dtype=torch.float64) for n, sketch in made.sketches.items()}
    for what, side in (("output", made.outputs), ("returned", made.input_gradients), ("said", made.tokens)):
        tensors |= {f"{what}/{n}": tensor for n, tensor in side.items() if tensor is not None}
    tensors |= {f"loss/{n}": torch.tensor(loss, dtype=torch.float64) for n, loss in made.losses.items()}
    for what, value in (("gradient_hash", made.gradient_hash), ("next_root", made.next_root)):
        tensors[f"{what}/"] = torch.tensor(list(value), dtype=torch.uint8)
    return tensors


def _made(tensors: Tensors) -> Made:
    losses = {int(n): loss.item() for n, loss in _part(tensors, "loss").items()}
    outputs, returned, norms = (_part(tensors, what) for what in ("output", "returned", "norm"))
    sketches = {int(n): Sketched(sums, norms[n].item()) for n, sums in _part(tensors, "sketch").items()}
    return Made(
        {n: outputs.get(str(n)) for n in sorted(losses)},
        {n: returned.get(str(n)) for n in sorted(losses)},
        losses,
        {int(n): tokens for n, tokens in _part(tensors, "said").items()},
        dict(sorted(sketches.items())),
        _part(tensors, "summed"),
        bytes(tensors["gradient_hash/"].tolist()),
        bytes(tensors["next_root/"].tolist()),
        _part(tensors, "next"),
    )


def _part(tensors: Tensors, what: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{what}/")}
