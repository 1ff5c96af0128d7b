import numpy as np
import pytest
from PIL import Image

from crate_jax.interpret.plots import layers_figure

CURVES = {name: np.linspace(0.2, 0.6, 4) for name in ("coding_rate", "nonzero")}
CURVES |= {f"{name}_std": np.full(4, 0.05) for name in CURVES}


@pytest.mark.parametrize(
    "labels, shape", [(["CRATE"], (450, 1200, 3)), (["a", "b"], (600, 1350, 3))]
)
def test_it_draws_a_png(tmp_path, labels, shape):
    layers_figure(dict.fromkeys(labels, CURVES), tmp_path / "layers.png", title="CRATE")
    image = np.asarray(Image.open(tmp_path / "layers.png").convert("RGB"))
    assert image.shape == shape
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
