"""A tiny Llama whose extreme tokens are known, because they are written into its weights.

Id 0 begins every text and is a sink. In the layers from :data:`FIRST_LAYER` on

- head 1 attends to it from all tokens;
- head 0 attends to it from ids in the lower half alone: it is dormant on texts of these, and active
  on texts of the others;
- the MLP of :data:`FIRST_LAYER` makes its residual large, along a feature that no value reads, so
  that its values are small in all heads above.

Everything else is random. Feature 0 of the stream marks id 0, feature 1 the ids of the
lower half, feature 2 every token; no sublayer but that MLP writes to them. Query and key of the
sink heads meet in the slowest pair of RoPE, which hardly turns over a text.
"""

import json
import pathlib

import ml_dtypes
import numpy as np

from crate_jax.convert import files, huggingface
from crate_jax.convert.safetensors_map import SINGLE

FIRST_LAYER = 1
SINK, LOWER, ALL = 0, 1, 2

CONFIG = {
    "model_type": "llama", "dtype": "bfloat16", "vocab_size": 128, "hidden_size": 64,
    "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


def write(directory: pathlib.Path, *, strength: float = 1.0, seed: int = 0) -> None:
    """Writes the checkpoint, in bfloat16.

    Args:
      directory: made where it is not there.
      strength: of what is planted; at 0 the model is random.
      seed: of the rest.
    """
    arch = huggingface.parse_architecture(CONFIG)
    of_layer, outer = huggingface.leaves(arch)
    shapes = {leaf.name: leaf.shape for leaf in outer.values()} | {
        leaf.name.format(i=l): leaf.shape for l in range(arch.depth) for leaf in of_layer.values()
    }
    rng = np.random.default_rng(seed)
    arrays = {
        name: 0.5 * shape[1] ** -0.5 * rng.standard_normal(shape) if shape[1:] else np.ones(shape)
        for name, shape in shapes.items()
    }
    embedding = arrays["embed_tokens.weight"]
    embedding[:] = 0.5 * rng.standard_normal(embedding.shape)
    embedding[:, :3] = 0
    embedding[: arch.vocab // 2, LOWER] = 3
    embedding[:, ALL] = 3
    embedding[0] *= 1 - 0.98 * strength
    embedding[0, SINK] = 8 * strength
    slow = arch.head_dim // 2 - 1
    for l in range(arch.depth):
        maps = {
            name: arrays[f"layers.{l}.{name}.weight"]
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                         "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        }  # fmt: skip
        maps["self_attn.o_proj"][:3] = maps["mlp.down_proj"][:3] = 0
        maps["self_attn.v_proj"][:, :3] = 0
        if l < FIRST_LAYER:
            continue
        maps["self_attn.k_proj"][slow, SINK] = strength
        maps["self_attn.q_proj"][slow, LOWER] = strength
        maps["self_attn.q_proj"][arch.head_dim + slow, ALL] = strength
        if l == FIRST_LAYER:
            maps["mlp.gate_proj"][0, SINK] = maps["mlp.up_proj"][0, SINK] = 1
            maps["mlp.down_proj"][SINK, 0] = 4 * strength
    files.write(
        directory / SINGLE, {name: x.astype(ml_dtypes.bfloat16) for name, x in arrays.items()}
    )
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
