"""The golden files are the reference implementation's; see tests/convert/golden/make.py."""

import math
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from crate_jax.convert import huggingface
from crate_jax.layers.rotary import Rope
from crate_jax.models.decoder import (
    Architecture,
    Decoder,
    DecoderBlock,
    Norm,
    next_token_loss,
)
from crate_jax.models.decoder_interventions import Interventions

GOLDEN = pathlib.Path(__file__).parents[1] / "convert" / "golden"
MODELS = sorted(path.parent.name for path in GOLDEN.glob("*/expected.npz"))
FAMILIES = [name for name in MODELS if name not in ("gpt2_scaled", "llama_biases")]


def load(name, dtype):
    module, variables = huggingface.load(GOLDEN / name, param_dtype=dtype)
    return module, variables, np.load(GOLDEN / name / "expected.npz")


def apart(got, wanted):
    """The largest difference over the largest value."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape
    return np.abs(got - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("name", MODELS)
def test_float64_is_the_reference(x64, name):
    module, variables, golden = load(name, "float64")
    capture = ("embedding", "residual", "final", "attention")
    logits, seen = jax.jit(lambda v, t: module.apply(v, t, capture=capture))(
        variables, golden["tokens"]
    )
    assert logits.dtype == jnp.float64
    assert apart(logits, golden["logits"]) < 1e-12
    assert apart(np.stack([seen["embedding"], *seen["residual"]]), golden["hidden"]) < 1e-12
    assert apart(seen["final"], golden["final"]) < 1e-12
    assert apart(seen["attention"], golden["attention"]) < 1e-12
    assert apart(next_token_loss(logits, golden["tokens"]), golden["loss"]) < 1e-12


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_and_bfloat16_are_the_reference(name):
    module, variables, golden = load(name, "float32")
    logits = jax.jit(module.apply)(variables, golden["tokens"])
    assert apart(logits, golden["logits_float32"]) < 5e-6
    module, variables, golden = load(name, "bfloat16")
    logits = module.apply(variables, golden["tokens"])  # jit would leave roundings out
    assert logits.dtype == jnp.float32
    assert apart(logits, golden["logits_bfloat16"]) < 0.04


@pytest.mark.parametrize("name", FAMILIES)
def test_interventions_are_the_reference(x64, name):
    """A head's output or a sublayer's set to zero, all of them at once under vmap."""
    module, variables, golden = load(name, "float64")
    L, H = golden["no_head"].shape[:2]
    count = L * H + 2 * L
    none = Interventions.none(L, H, jnp.float64)
    many = jax.tree.map(lambda field: np.repeat(np.asarray(field)[None], count, axis=0), none)
    for i, (l, h) in enumerate(np.ndindex(L, H)):
        many.head_gain[i, l, h] = 0
    for l in range(L):
        many.attention_gain[L * H + l, l] = 0
        many.mlp_gain[L * H + L + l, l] = 0

    @jax.jit
    @jax.vmap
    def loss(one):
        return next_token_loss(module.apply(variables, golden["tokens"], one), golden["tokens"])

    losses = loss(many)
    wanted = [golden["no_head"].reshape(L * H, -1), golden["no_attention"], golden["no_mlp"]]
    assert apart(losses, np.concatenate(wanted)) < 1e-12


def test_no_intervention_changes_no_bit():
    module, variables, golden = load("llama3", "float32")
    tokens = golden["tokens"]
    none = Interventions.none(module.arch.depth, module.arch.heads)
    np.testing.assert_array_equal(
        module.apply(variables, tokens, none), module.apply(variables, tokens)
    )


def test_attention_moved_to_the_first_token(x64):
    module, variables, golden = load("llama3", "float64")
    none = Interventions.none(2, 4, jnp.float64)
    moved = none._replace(to_first=none.to_first.at[1, 2].set(1.0))
    apply = jax.jit(module.apply, static_argnums=3)
    _, seen = apply(variables, golden["tokens"], moved, ("attention",))
    A = np.asarray(seen["attention"])
    np.testing.assert_allclose(A[1, :, 2, :, 0], 1, rtol=1e-12)
    np.testing.assert_array_equal(A[1, :, 2, :, 1:], 0)
    np.testing.assert_allclose(A[0], golden["attention"][0], atol=1e-12)
    others = [0, 1, 3]
    np.testing.assert_allclose(A[1][:, others], golden["attention"][1][:, others], atol=1e-12)


def test_value_norms_are_of_what_a_head_adds(x64):
    """With all attention on one key, the head's output is that key's value through W_O."""
    module, variables, golden = load("gpt2", "float64")
    x = jnp.asarray(golden["hidden"][1])
    block = DecoderBlock(module.arch)
    params = {"params": variables["params"]["blocks_1"]}
    _, seen = block.apply(params, x, None, ("value_norms",))
    for h in range(4):
        only = Interventions(jnp.zeros(4).at[h].set(1.0), jnp.ones(4), jnp.ones(()), jnp.ones(()))
        nothing = only._replace(head_gain=jnp.zeros(4))
        with_head, without = (
            block.apply(params, x, i, ("attention_out",))[1]["attention_out"]
            for i in (only, nothing)
        )
        added = np.linalg.norm(np.asarray(with_head - without), axis=-1)
        np.testing.assert_allclose(added, np.tile(seen["value_norms"][:, h, :1], 10), rtol=1e-10)


@pytest.mark.parametrize("kind", ["rms", "rms_cast_last"])
def test_low_precision_norms_cast_where_their_family_does(kind):
    """Llama casts and then scales; OLMo-2 scales and then casts: other bits in bfloat16."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 32)).astype(ml_dtypes.bfloat16)
    scale = (1 + 0.3 * rng.normal(size=32)).astype(ml_dtypes.bfloat16)
    y = x.astype(np.float32)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + np.float32(1e-5))
    wanted = {
        "rms": scale * y.astype(ml_dtypes.bfloat16),
        "rms_cast_last": (scale.astype(np.float32) * y).astype(ml_dtypes.bfloat16),
    }
    got = Norm(kind, 1e-5, "bfloat16").apply({"params": {"scale": jnp.asarray(scale)}}, x)
    assert got.dtype == jnp.bfloat16
    same = {other: (np.asarray(got) == w).mean() for other, w in wanted.items()}
    assert same[kind] > 0.995
    assert min(same.values()) < 0.9


def test_texts_longer_than_the_table_of_positions():
    module, variables, _ = load("gpt2", "float32")
    with pytest.raises(ValueError, match="texts of 33 tokens, and the model has 32 positions"):
        module.apply(variables, jnp.zeros((1, 33), jnp.int32))


def test_later_tokens_are_not_seen():
    module, variables, golden = load("olmo2", "float32")
    tokens = golden["tokens"]
    other = tokens.copy()
    other[:, 6] = (other[:, 6] + 1) % 37
    a, b = (np.asarray(module.apply(variables, t)) for t in (tokens, other))
    np.testing.assert_array_equal(a[:, :6], b[:, :6])
    assert np.abs(a[:, 6:] - b[:, 6:]).max() > 1e-3


SEVEN_B = {"width": 4096, "depth": 32, "heads": 32, "head_dim": 128, "max_length": 4096}
PUBLISHED = {
    "llama-2-7b": (
        Architecture("llama", vocab=32000, kv_heads=32, hidden=11008, **SEVEN_B), 6_738_415_616,
    ),
    "llama-3.1-8b": (
        Architecture("llama", vocab=128256, kv_heads=8, hidden=14336, **SEVEN_B), 8_030_261_248,
    ),
    "olmo-7b": (
        Architecture(
            "olmo", vocab=50304, kv_heads=32, hidden=11008, norm="plain_layer", **SEVEN_B
        ),
        6_888_095_744,
    ),
    "smollm-135m": (
        Architecture("llama", 49152, 576, 30, 9, 3, 64, 1536, 2048, tied=True), 134_515_008,
    ),
    "gpt2": (
        Architecture(
            "gpt2", 50257, 768, 12, 12, 12, 64, 3072, 1024, norm="layer", mlp="gelu",
            attention_bias=True, mlp_bias=True, rope=None, tied=True,
        ),
        124_439_808,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    arch, count = PUBLISHED[name]
    module = Decoder(arch)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_a_fresh_network_guesses_evenly():
    arch = Architecture("llama", 50, 16, 1, 4, 2, 4, 32, 64, rope=Rope(theta=500.0))
    module = Decoder(arch)
    tokens = jnp.arange(12).reshape(1, 12)
    variables = jax.jit(module.init)(jax.random.key(0), tokens)
    loss = next_token_loss(module.apply(variables, tokens), tokens)
    np.testing.assert_allclose(loss, math.log(50), atol=0.05)


def test_a_name_that_is_not_captured():
    module, variables, golden = load("llama2", "float32")
    with pytest.raises(ValueError, match="capture='atention' is none of"):
        module.apply(variables, golden["tokens"], capture=("atention",))
