"""A Llama-style decoder whose residual stream is k numbers per token.

In a Subspace Network (arXiv 2506.01260) each sublayer writes into one k-dimensional subspace Col(U) of the
residual stream X, so X = F[tok] + c Uᵀ at every depth: a frozen random part per token, and what the layers
wrote. Here c itself is the residual stream. Each sublayer reads X, rebuilt from c, and adds k numbers to it:

    c = E[tok]                                   the first stage
    c = c + attention(norm(F[tok] + c Uᵀ)) Zo    each layer
    c = c + swiglu(norm(F[tok] + c Uᵀ)) Zd
    logits = norm(F[tok] + c Uᵀ) headᵀ           the last stage

So c is what crosses a stage boundary, and dL/dc what comes back: nothing is encoded, and nothing is lost.
Dense models (k = d) have U = I and F = 0, and skip both: a plain Llama.

Names of axes: b sequences, t positions, d d_model, k boundary_dim, h heads, f d_ff, v vocab_size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commonweight.rules.spec import Architecture

LAST, ALL = slice(-1, None), slice(None)
"""Of the positions that were given."""


class Rotary(nn.Module):
    """Rotary position embedding (arXiv 2104.09864), with Hugging Face's pairing of i with i + head_dim/2."""

    def __init__(self, arch: Architecture, length: int) -> None:
        super().__init__()
        exponent = torch.arange(0, arch.head_dim, 2, dtype=torch.float64) / arch.head_dim
        position = torch.arange(length, dtype=torch.float64)
        angle = torch.outer(position, float(arch.rope_theta) ** -exponent)[:, None]  # [t, 1, head_dim/2]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def forward(self, x_bthe: Tensor, start: int = 0) -> Tensor:
        """The heads turned by their positions start..start+t-1; computed in the table's precision, returned in
        the input's.
        """
        end = start + x_bthe.shape[1]
        cos, sin = self.cos[start:end], self.sin[start:end]
        a, b = x_bthe.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_bthe.dtype)


class Norm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467) with a trained scale, computed in the scale's precision."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.eps = float(arch.norm_eps)
        self.scale = nn.Parameter(torch.empty(arch.d_model))

    def forward(self, x_btd: Tensor) -> Tensor:
        x = x_btd.to(self.scale.dtype)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.scale


class Attention(nn.Module):
    """Causal self-attention with grouped queries (arXiv 2305.13245); query, key and value are one product."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = arch.n_heads, arch.n_kv_heads, arch.head_dim
        rows = (arch.n_heads + 2 * arch.n_kv_heads) * arch.head_dim
        self.norm = Norm(arch)
        self.wqkv = nn.Parameter(torch.empty(rows, arch.d_model))
        self.zo = nn.Parameter(torch.empty(arch.d_model, arch.boundary_dim))

    def forward(
        self,
        x_btd: Tensor,
        rotary: Rotary,
        kept: tuple[Tensor, Tensor] | None = None,
        start: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """What attention adds to the stream [b, t, k].

        With `kept`, keys and values [b, h_kv, capacity, head_dim], x stands at positions start..start+t-1: its own
        are written there, and it attends to all from position 0, under `mask` [t, start + t] where one is given.
        """
        qkv = F.linear(self.norm(x_btd), self.wqkv)
        heads = qkv.view(*qkv.shape[:2], -1, self.head_dim)  # [b, t, h + 2 h_kv, head_dim]
        turned = self.n_heads + self.n_kv_heads
        qk, v = rotary(heads[:, :, :turned], start), heads[:, :, turned:]
        q, k = qk[:, :, : self.n_heads], qk[:, :, self.n_heads :]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [b, heads, t, head_dim]
        if kept is not None:
            end = start + x_btd.shape[1]
            kept[0][:, :, start:end], kept[1][:, :, start:end] = k, v
            k, v = kept[0][:, :, :end], kept[1][:, :, :end]
            if x_btd.shape[1] == 1:
                # A single query sees everything, so a group's heads can stand where positions do: no mask, and no
                # repeating of the group's keys and values.
                q = q.reshape(q.shape[0], self.n_kv_heads, -1, self.head_dim)
                return F.scaled_dot_product_attention(q, k, v).reshape(q.shape[0], 1, -1) @ self.zo
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=self.n_heads != self.n_kv_heads
        )
        return mixed.transpose(1, 2).flatten(2) @ self.zo  # [b, t, k]


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202); gate and up are one product."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.norm = Norm(arch)
        self.w_gate_up = nn.Parameter(torch.empty(2 * arch.d_ff, arch.d_model))
        self.zd = nn.Parameter(torch.empty(arch.d_ff, arch.boundary_dim))

    def forward(self, x_btd: Tensor) -> Tensor:
        gate, up = F.linear(self.norm(x_btd), self.w_gate_up).chunk(2, dim=-1)  # [b, t, f] each
        return (F.silu(gate) * up) @ self.zd  # [b, t, k]


class Layer(nn.Module):
    """Attention and feed-forward, each with its norm before it."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.attention = Attention(arch)
        self.ffn = FeedForward(arch)


class Subspace(nn.Module):
    """The frozen halves of X = F[tok] + c Uᵀ, the same on every stage. Absent where the model is dense."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.register_buffer("U", torch.empty(arch.d_model, arch.boundary_dim), persistent=False)
        self.register_buffer("F", torch.empty(arch.vocab_size, arch.d_model), persistent=False)
        self.U: Tensor
        self.F: Tensor

    def read(self, code_btk: Tensor, frozen_btd: Tensor) -> Tensor:
        """X, as one product that starts from F[tok] instead of zero."""
        x = torch.addmm(frozen_btd.flatten(0, 1), code_btk.flatten(0, 1), self.U.T)
        return x.view_as(frozen_btd)


class Embedding(nn.Module):
    """The trained part of a token's vector: its initial k numbers."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.E = nn.Parameter(torch.empty(arch.vocab_size, arch.boundary_dim))

    def forward(self, ids_bt: Tensor) -> Tensor:
        return F.embedding(ids_bt, self.E)


class Head(nn.Module):
    """Final norm and output head, in full d."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.norm = Norm(arch)
        self.weight = nn.Parameter(torch.empty(arch.vocab_size, arch.d_model))

    def forward(self, x_btd: Tensor) -> Tensor:
        return F.linear(self.norm(x_btd), self.weight)


class Decoder(nn.Module):
    """The given layers of a decoder; with the embedding if first, with final norm and head if last.

    Parameters have the same names whatever the cut: "embedding.E", "layers.3.attention.wqkv", "head.weight".
    They are uninitialized until `commonweight.model.initial` fills them.
    """

    def __init__(self, arch: Architecture, layers: range, length: int, *, first: bool, last: bool) -> None:
        super().__init__()
        self.subspace = None if arch.is_dense else Subspace(arch)
        self.rotary = Rotary(arch, length)
        self.embedding = Embedding(arch) if first else None
        self.layers = nn.ModuleDict({str(number): Layer(arch) for number in layers})
        self.head = Head(arch) if last else None

    def forward(
        self,
        ids_bt: Tensor,
        code_btk: Tensor | None,
        kept: Sequence[tuple[Tensor, Tensor]] | None = None,
        start: int = 0,
        rows: slice = LAST,
    ) -> Tensor:
        """The stream after these layers [b, t, k], or from the last stage the logits [b, t, v].

        `code_btk` is the stream from the stage before, None for the first stage. `ids_bt` are int64. With `kept`,
        each layer's keys and values, they continue sequences of which `kept` holds positions 0..start-1 (see
        `Attention`), and the logits are those of `rows` of the t positions only: of the last one [b, 1, v].
        """
        c = code_btk if self.embedding is None else self.embedding(ids_bt)
        assert c is not None, "only the first stage starts without a code"
        # Gathered once for all layers: [b, t, d].
        frozen = None if self.subspace is None else F.embedding(ids_bt, self.subspace.F)
        t, mask = ids_bt.shape[1], None
        if start > 0 and t > 1:
            mask = torch.ones(t, start + t, dtype=torch.bool, device=c.device).tril(start)
        layers_kept: Sequence[tuple[Tensor, Tensor] | None] = kept or [None] * len(self.layers)
        for layer, layer_kept in zip(self.layers.values(), layers_kept, strict=True):
            assert isinstance(layer, Layer)
            c = c + layer.attention(self._read(c, frozen), self.rotary, layer_kept, start, mask)
            c = c + layer.ffn(self._read(c, frozen))
        if self.head is not None and kept is not None:
            c, frozen = c[:, rows], None if frozen is None else frozen[:, rows]
        return c if self.head is None else self.head(self._read(c, frozen))

    def _read(self, c: Tensor, frozen: Tensor | None) -> Tensor:
        return c if self.subspace is None or frozen is None else self.subspace.read(c, frozen)
