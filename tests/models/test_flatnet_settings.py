"""The presets and the settings that cannot be."""

import pytest

from crate_jax.config import ConfigError
from crate_jax.models.flatnet_settings import PRESETS, Construction, check


def test_the_presets_are_the_versions_of_the_code():
    head, v021, arxiv = (Construction(**PRESETS[name]) for name in ("head", "v021", "arxiv"))
    assert (head.thres_recon, head.renormalise, head.n_stop) == (1e-5, True, 10)
    assert (v021.thres_recon, v021.renormalise, v021.max_error_ratio) == (1e-4, False, 0.3)
    assert (arxiv.n_stop, arxiv.max_error_ratio, arxiv.r_max) == (5, 0.2, 1.1)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"alpha_max": 1.0}, "alpha_max must be above 0 and below 1"),
        ({"inner": "adamm"}, "did you mean 'adam'"),
        ({"r_min": 2.0}, "r_min=2 is above"),
        ({"thres_recon": float("nan")}, "thres_recon must be above 0"),
    ],
    ids=["alpha", "inner", "radii", "nan"],
)
def test_what_cannot_be_is_a_sentence(changes, words):
    with pytest.raises(ConfigError, match=words):
        check(Construction(**changes))
