import jax
import numpy as np
import pytest

from crate_jax.models import decoder_interventions
from crate_jax.models.decoder_interventions import Interventions
from crate_jax.ops.attention_entropy import largest_column_entropy, mean_row_entropy
from crate_jax.ops.attention_maps import attention_map, causal_mask

T = 8
intervene = jax.jit(decoder_interventions.intervene)


@pytest.fixture(scope="module")
def attention():
    """Two texts of two heads; head 0 looks at the first token on text 0 alone."""
    scores = np.random.default_rng(0).normal(size=(2, 2, T, T)).astype(np.float32)
    scores[0, 0, :, 0] += 8
    mask = np.asarray(causal_mask(T))[None, None]
    return jax.jit(attention_map, static_argnums=1)(scores, "softmax", mask)


def one_layer(gain, moved, **gate):
    ones = np.ones((), np.float32)
    return Interventions(np.float32(gain), np.float32(moved), ones, ones, **gate)


def test_a_gate_lets_through_the_texts_on_which_a_head_is_a_sink_head(attention):
    A = np.asarray(attention)
    row, column = jax.jit(lambda A: (mean_row_entropy(A), largest_column_entropy(A)))(A)
    assert row[0, 0] < 0.2 < np.delete(np.ravel(row), 0).min()
    assert column[0, 0] > 0.97
    gate = {"row_below": np.full(2, 0.2), "column_above": np.full(2, 0.97)}

    got = np.asarray(intervene(attention, one_layer([0.0, 0.0], [0.0, 0.0], **gate)))
    np.testing.assert_array_equal(got[0, 0], 0)
    others = [(0, 1), (1, 0), (1, 1)]
    for i in others:
        np.testing.assert_array_equal(got[i], A[i])

    got = np.asarray(intervene(attention, one_layer([1.0, 1.0], [1.0, 1.0], **gate)))
    np.testing.assert_allclose(got[0, 0], np.eye(T)[[0] * T], atol=1e-6)
    for i in others:
        np.testing.assert_array_equal(got[i], A[i])


@pytest.mark.parametrize("bounds, is_open", [((np.inf, -np.inf), True), ((0, -np.inf), False)])
def test_open_and_closed_gates(attention, bounds, is_open):
    gate = dict(zip(("row_below", "column_above"), (np.full(2, b) for b in bounds), strict=True))
    gain, moved = [0.0, 0.5], [0.3, 1.0]
    got = intervene(attention, one_layer(gain, moved, **gate))
    wanted = intervene(attention, one_layer(gain, moved)) if is_open else attention
    np.testing.assert_array_equal(got, wanted)


def test_a_row_bound_alone_does_not_do(attention):
    """Both have to hold: a bound on columns that none reaches shuts the gate."""
    gate = {"row_below": np.full(2, np.inf), "column_above": np.full(2, 1.5)}
    got = intervene(attention, one_layer([0.0, 0.0], [0.0, 0.0], **gate))
    np.testing.assert_array_equal(got, attention)


def test_fields_of_a_layer():
    many = Interventions.none(3, 2)
    one = many._replace(head_gain=many.head_gain.at[1, 0].set(0.0)).at(1)
    np.testing.assert_array_equal(one.head_gain, [0, 1])
    assert one.mlp_gain.shape == () and one.row_below is None
