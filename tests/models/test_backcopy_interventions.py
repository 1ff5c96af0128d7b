import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.models.backcopy import FORCES, Interventions
from tests.models.test_backcopy import TRIGGERS, apply, make, np_transformer, tokens

__all__ = ["tokens"]  # the fixture

CHANGES = {
    "head_gain": [[1.0, 0.0], [0.5, 1.0]],
    "attention_gain": [0.0, 2.0],
    "mlp_gain": [0.5, 0.0],
    "bos_attention_gain": [[0.0, 1.0], [1.0, 3.0]],
    "bos_value_gain": [[0.0, 1.0], [2.0, 0.0]],
    "bos_mlp_gain": [0.0, -1.0],
}
FORCED = [
    {"force": [[FORCES[name], 0], [FORCES[other], FORCES[name]]]}
    for name, other in (("ideal", "bos"), ("diagonal", "none"), ("dormant", "active"))
]


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_interventions_are_the_formulas_one_by_one_and_mapped(x64, tokens, norm):
    model, p, settings = make(tokens, norm=norm)
    none = Interventions.none(2, 2, TRIGGERS)
    changes = [*({name: value} for name, value in CHANGES.items()), *FORCED, CHANGES | FORCED[2]]
    all_of_them = [
        none._replace(**{n: jnp.asarray(v, getattr(none, n).dtype) for n, v in c.items()})
        for c in [{}, *changes]
    ]
    run = jax.jit(jax.vmap(lambda i: model.apply({"params": p}, tokens, i, ("attention",))))
    logits, seen = run(jax.tree.map(lambda *x: jnp.stack(x), *all_of_them))
    for i, change in enumerate([{}, *changes]):
        expected, layers = np_transformer(tokens, p, change, **settings)
        np.testing.assert_allclose(logits[i], expected, rtol=1e-10, atol=1e-12, err_msg=str(change))
        np.testing.assert_allclose(
            seen["attention"][i], layers["attention"], rtol=1e-10, atol=1e-12, err_msg=str(change)
        )
    np.testing.assert_allclose(apply(model, p, tokens), logits[0], rtol=1e-12)
    assert np.abs(np.asarray(logits[1:]) - logits[:1]).max(axis=(1, 2, 3)).min() > 1e-3


def test_interventions_on_absent_sublayers_change_nothing(tokens):
    model, p, _ = make(tokens, no_attention=(0,), no_mlp=(1,))
    off = jnp.zeros((2, 2)).at[1].set(1)
    change = Interventions.none(2, 2, TRIGGERS)._replace(
        head_gain=off, bos_value_gain=off, attention_gain=off[:, 0], mlp_gain=1 - off[:, 0]
    )
    np.testing.assert_allclose(
        apply(model, p, tokens, change), apply(model, p, tokens), rtol=1e-5, atol=1e-6
    )


def test_a_layer_gets_its_own_part_and_all_triggers():
    none = Interventions.none(3, 2, TRIGGERS)
    change = none._replace(mlp_gain=jnp.arange(3.0), head_gain=jnp.arange(6.0).reshape(3, 2))
    layer = change.layer(1)
    assert layer.mlp_gain == 1 and layer.head_gain.tolist() == [2, 3]
    assert layer.triggers.tolist() == list(TRIGGERS) and layer.force.tolist() == [0, 0]
    assert Interventions.none(1, 1).triggers.shape == (0,)
