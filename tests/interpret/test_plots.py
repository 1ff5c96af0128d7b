import numpy as np
from PIL import Image

from crate_jax.interpret.plots import layers_figure


def test_it_draws_a_png(tmp_path):
    curves = {name: np.linspace(0.2, 0.6, 4) for name in ("coding_rate", "nonzero")}
    curves |= {f"{name}_std": np.full(4, 0.05) for name in curves}
    layers_figure(curves, tmp_path / "layers.png", title="CRATE")
    image = np.asarray(Image.open(tmp_path / "layers.png").convert("RGB"))
    assert image.shape == (450, 1200, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
