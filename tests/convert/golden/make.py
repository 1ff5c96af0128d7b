"""Makes the golden files of the language models with Hugging Face's ``transformers``.

    pip install torch transformers
    python tests/convert/golden/make.py tests/convert/golden

For each family a tiny checkpoint with random weights (``config.json``, ``model.safetensors`` in
bfloat16, so that every dtype holds them exactly) and ``expected.npz``:

    tokens           (B, T) ids
    logits           (B, T, V), float64
    hidden           (L + 1, B, T, C), float64: the embedding and each layer's output, before the
                     final norm
    final            (B, T, C), float64: after it
    attention        (L, B, H, T, T), float64
    loss             (B,), float64, mean cross-entropy of the next token
    no_head          (L, H, B), float64: the loss with one head's output set to zero
    no_attention     (L, B), float64: the loss with what a layer's attention adds set to zero
    no_mlp           (L, B), float64: the same for its MLP
    logits_float32   (B, T, V), of the same model as it comes, in float32
    logits_bfloat16  (B, T, V), in bfloat16

The reference casts to float32 in its norms, rotary tables and softmax, whatever the model's dtype.
For the float64 figures the name ``torch.float32`` is bound to ``torch.float64`` while it runs.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

LENGTH, BATCH, VOCAB = 10, 2, 37

SIZES = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32, "use_cache": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip

GPT2 = {
    "vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32,
    "use_cache": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

CONFIGS = {
    "llama2": ("Llama", SIZES | {"rms_norm_eps": 1e-5}),
    "llama3": (
        "Llama",
        SIZES
        | {
            "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5,
            "rope_parameters": LLAMA3_ROPE,
        },
    ),
    "smollm": ("Llama", SIZES | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "olmo": ("Olmo", SIZES | {"clip_qkv": 0.5}),
    "olmo2": (
        "Olmo2",
        SIZES
        | {
            "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
    "gpt2": ("GPT2", GPT2),
    "llama_biases": (
        "Llama",
        SIZES
        | {
            "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0},
        },
    ),
    "gpt2_scaled": (
        "GPT2",
        GPT2
        | {
            "n_inner": 24, "tie_word_embeddings": False, "reorder_and_upcast_attn": True,
            "scale_attn_by_inverse_layer_idx": True,
        },
    ),
}  # fmt: skip


def build(kind, settings):
    config = getattr(transformers, f"{kind}Config")(**settings)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def create(kind, settings, seed):
    torch.manual_seed(seed)
    model = build(kind, settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            vector = parameter.ndim == 1
            around = 1.0 if vector and name.endswith("weight") else 0.0
            parameter.copy_((around + (0.2 if vector else 0.35) * noise).bfloat16())
    return model.eval()


def layers_of(model):
    inner = model.transformer if hasattr(model, "transformer") else model.model
    return list(inner.h if hasattr(inner, "h") else inner.layers)


def sublayers(layer):
    """The modules whose output is added to the stream, and the map out of the heads."""
    if hasattr(layer, "attn"):
        return layer.attn, layer.mlp, layer.attn.c_proj
    if hasattr(layer, "post_feedforward_layernorm"):
        norms = layer.post_attention_layernorm, layer.post_feedforward_layernorm
        return *norms, layer.self_attn.o_proj
    return layer.self_attn, layer.mlp, layer.self_attn.o_proj


def losses(model, tokens):
    log_p = torch.log_softmax(model(tokens).logits[:, :-1], dim=-1)
    return -log_p.gather(-1, tokens[:, 1:, None])[..., 0].mean(-1).numpy()


def without_output(model, tokens, module):
    def zero(_, __, out):
        return (0 * out[0], *out[1:]) if isinstance(out, tuple) else 0 * out

    handle = module.register_forward_hook(zero)
    loss = losses(model, tokens)
    handle.remove()
    return loss


def without_head(model, tokens, out_map, head, heads):
    def zero(_, args):
        x = args[0].clone()
        size = x.shape[-1] // heads
        x[..., head * size : (head + 1) * size] = 0
        return (x, *args[1:])

    handle = out_map.register_forward_pre_hook(zero)
    loss = losses(model, tokens)
    handle.remove()
    return loss


def exact(model, tokens):
    """Everything that is wanted in float64."""
    raw = []
    layers = layers_of(model)

    def keep(_, __, out):
        raw.append(out[0] if isinstance(out, tuple) else out)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    out = model(tokens, output_hidden_states=True, output_attentions=True)
    for handle in handles:
        handle.remove()
    heads = model.config.num_attention_heads
    parts = [sublayers(layer) for layer in layers]
    return {
        "tokens": tokens.numpy().astype(np.int32),
        "logits": out.logits.numpy(),
        "hidden": torch.stack([out.hidden_states[0], *raw]).numpy(),
        "final": out.hidden_states[-1].numpy(),
        "attention": torch.stack(out.attentions).numpy(),
        "loss": losses(model, tokens),
        "no_head": np.array(
            [[without_head(model, tokens, p[2], h, heads) for h in range(heads)] for p in parts]
        ),
        "no_attention": np.array([without_output(model, tokens, p[0]) for p in parts]),
        "no_mlp": np.array([without_output(model, tokens, p[1]) for p in parts]),
    }


def double(kind, settings, like):
    model = build(kind, settings).double().eval()
    model.load_state_dict({name: x.double() for name, x in like.state_dict().items()})
    return model


def main(root):
    for seed, (name, (kind, settings)) in enumerate(CONFIGS.items()):
        folder = root / name
        model = create(kind, settings, seed)
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokens = torch.from_numpy(np.random.default_rng(seed).integers(VOCAB, size=(BATCH, LENGTH)))
        low = model(tokens).logits.float().numpy()
        single = create(kind, settings, seed)
        float32 = single(tokens).logits.numpy()

        names = ("float32", "float")
        kept = {name: getattr(torch, name) for name in names}, torch.Tensor.float
        for attribute in names:
            setattr(torch, attribute, torch.float64)
        torch.Tensor.float = torch.Tensor.double
        # Made anew: the frequencies of the rotary tables are formed when a model is.
        torch.set_default_dtype(torch.float64)
        expected = exact(double(kind, settings, single), tokens)
        torch.set_default_dtype(kept[0]["float32"])
        for attribute in names:
            setattr(torch, attribute, kept[0][attribute])
        torch.Tensor.float = kept[1]

        assert all(x.dtype == np.float64 for key, x in expected.items() if key != "tokens")
        apart = np.abs(expected["logits"] - float32).max() / np.abs(float32).max()
        print(f"{name}: float32 and float64 differ by {apart:.1e} of the largest logit")
        np.savez_compressed(
            folder / "expected.npz", logits_float32=float32, logits_bfloat16=low, **expected
        )


if __name__ == "__main__":
    with torch.no_grad():
        main(pathlib.Path(sys.argv[1]))
