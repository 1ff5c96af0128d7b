import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.systems.mixing import cutmix, mix, mixup

B, H, W = 6, 8, 10
IMAGE = jnp.broadcast_to(jnp.arange(B, dtype=jnp.float32)[:, None, None, None], (B, H, W, 3))
TARGET = jnp.eye(B)


def test_mixup_is_one_convex_combination_of_mirrored_examples():
    image, target = mixup(jax.random.key(0), IMAGE, TARGET, 0.8)
    lam = float(target[0, 0])
    assert 0 < lam < 1
    values = np.arange(B)
    want = lam * values + (1 - lam) * values[::-1]
    np.testing.assert_allclose(image, np.broadcast_to(want[:, None, None, None], image.shape), 1e-5)
    np.testing.assert_allclose(target, lam * np.eye(B) + (1 - lam) * np.eye(B)[::-1], rtol=1e-5)


def test_cutmix_targets_follow_the_area_that_was_pasted():
    for seed in range(20):
        image, target = cutmix(jax.random.key(seed), IMAGE, TARGET, 1.0)
        pasted = np.asarray(image[0, :, :, 0] == B - 1)
        np.testing.assert_allclose(float(target[0, B - 1]), pasted.mean(), atol=1e-6)
        rows, columns = pasted.any(1), pasted.any(0)
        np.testing.assert_array_equal(pasted, rows[:, None] & columns[None])


def test_the_coefficients_follow_a_beta_law():
    lam = jax.vmap(lambda key: mixup(key, IMAGE, TARGET, 0.8)[1][0, 0])(
        jax.random.split(jax.random.key(1), 4000)
    )
    np.testing.assert_allclose(lam.mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(lam.var(), 1 / (4 * (2 * 0.8 + 1)), atol=0.01)


def test_both_on_takes_each_about_half_of_the_time():
    def was_cut(key):
        image, _ = mix(key, IMAGE, TARGET, mixup_alpha=0.8, cutmix_alpha=1.0)
        return jnp.isin(image, jnp.arange(B)).all()

    share = jax.vmap(was_cut)(jax.random.split(jax.random.key(2), 1000)).mean()
    assert 0.45 < share < 0.55


def test_off_is_off():
    image, target = mix(jax.random.key(0), IMAGE, TARGET, mixup_alpha=0.0, cutmix_alpha=0.0)
    assert image is IMAGE and target is TARGET
