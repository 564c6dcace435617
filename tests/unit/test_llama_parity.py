"""A dense model is a Llama: Hugging Face's implementation gives the same logits with the same weights."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from commonweight.model.stage import Stage
from tests.unit.tiny import random_batches, tiny_spec

torch.set_num_threads(1)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_a_dense_model_is_a_llama(n_kv_heads):
    spec = tiny_spec(stages=1, boundary_dim=16, n_kv_heads=n_kv_heads)
    a = spec.architecture
    stage = Stage(spec, 0)
    config = LlamaConfig(
        vocab_size=a.vocab_size,
        hidden_size=a.d_model,
        intermediate_size=a.d_ff,
        num_hidden_layers=a.n_layers,
        num_attention_heads=a.n_heads,
        num_key_value_heads=a.n_kv_heads,
        rms_norm_eps=float(a.norm_eps),
        rope_parameters={"rope_type": "default", "rope_theta": float(a.rope_theta)},
        max_position_embeddings=spec.training.sequence_length,
        tie_word_embeddings=False,
    )
    llama = LlamaForCausalLM(config).eval()
    ours = {name: p.detach() for name, p in stage.module.named_parameters()}
    kv = a.n_kv_heads * a.head_dim
    theirs = {
        "model.embed_tokens.weight": ours.pop("embedding.E"),
        "model.norm.weight": ours.pop("head.norm.scale"),
        "lm_head.weight": ours.pop("head.weight"),
    }
    for layer in range(a.n_layers):
        mine, their = f"layers.{layer}", f"model.layers.{layer}"
        q, k, v = ours.pop(f"{mine}.attention.wqkv").split((a.d_model, kv, kv))
        gate, up = ours.pop(f"{mine}.ffn.w_gate_up").chunk(2)
        theirs |= {
            f"{their}.input_layernorm.weight": ours.pop(f"{mine}.attention.norm.scale"),
            f"{their}.self_attn.q_proj.weight": q,
            f"{their}.self_attn.k_proj.weight": k,
            f"{their}.self_attn.v_proj.weight": v,
            f"{their}.self_attn.o_proj.weight": ours.pop(f"{mine}.attention.zo").T,
            f"{their}.post_attention_layernorm.weight": ours.pop(f"{mine}.ffn.norm.scale"),
            f"{their}.mlp.gate_proj.weight": gate,
            f"{their}.mlp.up_proj.weight": up,
            f"{their}.mlp.down_proj.weight": ours.pop(f"{mine}.ffn.zd").T,
        }
    assert not ours, "every parameter has its counterpart"
    llama.load_state_dict(theirs, strict=True)

    tokens = random_batches(spec)[0].long()
    with torch.no_grad():
        expected = llama(tokens[:, :-1]).logits
        found = stage.module(tokens[:, :-1], None)
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-5
    loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), tokens[:, 1:].flatten())
    assert stage.forward(tokens, None).output == pytest.approx(loss.item(), abs=1e-5)
