"""The study at a small size, its numbers, its baselines, and taking it up again."""

import dataclasses
import io
import json
import pathlib
import runpy
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from crate_jax.config import ConfigError
from crate_jax.models.flatnet import stack_layers
from crate_jax.models.flatnet_settings import Construction
from crate_jax.studies import flatnet
from crate_jax.studies.flatnet import autoencoders, dimension, figures, study
from crate_jax.studies.flatnet.dimension import maximum_likelihood, two_nearest
from crate_jax.studies.flatnet.measure import Network, Projection, injectivity, measure
from crate_jax.studies.flatnet.records import read_network
from crate_jax.studies.flatnet.settings import Compare, Data, list_cells

SMALL = flatnet.Settings(
    data=Data(name="sine", points=20, test=5),
    build=Construction(n_iter=5, n_iter_inner=40),
    compare=Compare(interpolations=1),
)


def console():
    return Console(file=io.StringIO(), width=200)


class StoppedAfter(study.Preemption):
    """SIGTERM arrives during the second iteration."""

    def poll(self):
        self.polls = getattr(self, "polls", 0) + 1
        if self.polls == 2:
            self._note(signal.SIGTERM, None)
        return super().poll()


@pytest.mark.slow
def test_a_study_that_is_stopped_ends_with_the_same_bits(tmp_path, monkeypatch):
    first, second = tmp_path / "whole", tmp_path / "stopped"
    for path in (first, second):
        path.mkdir()
    assert flatnet.run(SMALL, first, console()) == 0
    with monkeypatch.context() as patch:
        patch.setattr(study, "Preemption", StoppedAfter)
        assert flatnet.run(SMALL, second, console()) == 75
    assert len((second / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (second / "results.json").exists()
    assert flatnet.run(SMALL, second, console()) == 0
    (a, its_a), (b, its_b) = (
        read_network(path / "cells/sine/network.npz") for path in (first, second)
    )
    for x, y in zip([*a.layers, a.dims, a.centre], [*b.layers, b.dims, b.centre], strict=True):
        np.testing.assert_array_equal(x, y)
    assert [it.loss for it in its_a] == [it.loss for it in its_b] and len(its_a) == 5
    one, other = (json.loads((path / "results.json").read_text()) for path in (first, second))
    assert one["sine"]["measures"] == other["sine"]["measures"]
    assert (second / "index.html").read_text().count("data:image/png") == 4
    assert flatnet.run(SMALL, second, console()) == 0  # finished networks are not built again


def test_the_numbers_of_no_layers_are_those_of_pca():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4)) * np.array([3, 2, 0.5, 0.1])
    network = Network(stack_layers([], np.zeros(4, np.float32), np.ones((), np.float32)))
    m = measure(network, X[:50], X[50:], 2, seed=0)
    s = np.linalg.svd(X[:50] - X[:50].mean(0), compute_uv=False)
    np.testing.assert_allclose(m["mse_pca"], np.sum(s[2:] ** 2) / 200, rtol=1e-9)
    for key in ("mse_reverse", "mse_as_shipped"):
        np.testing.assert_allclose(m[key], m["mse_pca"], rtol=1e-5)
    np.testing.assert_allclose(m["outside"], np.sum(s[2:] ** 2) / np.sum(s**2), rtol=1e-5)
    np.testing.assert_allclose(m["injectivity"], 1, rtol=1e-5)
    assert m["mse_full"] < 1e-12 and m["mse_test"] > 0


def test_numbers_that_there_are_not_are_no_nan(tmp_path):
    X = np.random.default_rng(0).normal(size=(9, 4))
    network = Network(stack_layers([], np.zeros(4, np.float32), np.ones((), np.float32)))
    m = measure(network, X, X[:0], 2, seed=0)
    assert m["mse_test"] is None and m["mse_pca_test"] is None
    json.dumps(m, allow_nan=False)


def test_fewer_points_than_asked_for_are_told():
    data = Data(name="mnist", source="digits", digit=8, points=900, test=20, components=10)
    settings, told = dataclasses.replace(SMALL, data=data), console()
    made = study._load(settings, list_cells(settings)[0], told)
    assert told.file.getvalue() == f"mnist: config.data.points=900, but there are {len(made.X)}.\n"
    quiet = console()
    for changes in ({"points": 40}, {"points": 0}):
        changed = dataclasses.replace(settings, data=dataclasses.replace(data, **changes))
        study._load(changed, list_cells(changed)[0], quiet)
    assert quiet.file.getvalue() == ""


def test_a_network_that_is_damaged_is_a_sentence(tmp_path):
    (tmp_path / "network.npz").write_bytes(b"PK")
    for name in ("network.npz", "none.npz"):
        with pytest.raises(ConfigError, match=f"{name} is missing or damaged; remove"):
            read_network(tmp_path / name)


def test_the_likelihood_estimate_has_no_bias(monkeypatch):
    """Volumes to the nearest points are sums of exponentials; distances their d-th roots."""
    volumes = np.cumsum(np.random.default_rng(0).exponential(size=(6000, 20)), axis=1)
    for d in (2, 7):
        distances = volumes ** (1 / d)
        monkeypatch.setattr(dimension, "nearest_distances", lambda X, k, T=distances: T)
        np.testing.assert_allclose(maximum_likelihood(volumes), d, rtol=0.01)


def test_squares_have_the_notebooks_radius():
    file = pathlib.Path(__file__).parents[2] / "configs/flatnet/squares.py"
    get_config = runpy.run_path(str(file))["get_config"]
    assert get_config().build.r_dimcheck == 0.15 and get_config().build.n_iter == 1000
    assert get_config("n_iter=500,r_dimcheck=0.2").build.r_dimcheck == 0.2


def test_the_least_stretch_by_hand():
    X = np.array([[0.0], [1.0], [3.0]])
    assert injectivity(X, np.array([[0.0], [0.5], [4.0]]), np.random.default_rng(0)) == 0.5


def test_a_projection_keeps_the_first_directions():
    X = np.array([[1.0, 0, 5], [-1, 0, 5], [0, 0.1, 5], [0, -0.1, 5]])
    flat = Projection.of(X, 1)
    np.testing.assert_allclose(flat(X), [[1, 0, 5], [-1, 0, 5], [0, 0, 5], [0, 0, 5]], atol=1e-12)


@pytest.mark.parametrize("d", [1, 3])
def test_the_dimension_of_a_cube(d):
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.normal(size=(6, d)))
    X = rng.uniform(size=(1200, d)) @ Q.T
    for estimate in (maximum_likelihood(X), two_nearest(X)):
        assert abs(estimate - d) < 0.15 * d
    assert np.isnan(two_nearest(np.zeros((20, 3)))) and np.isnan(
        maximum_likelihood(np.zeros((9, 2)))
    )


@pytest.mark.slow
def test_a_network_of_the_autoencoders_is_its_formula():
    net, x = autoencoders.Network(3, 2, layers=2), 3e-3 * np.arange(12.0).reshape(4, 3)
    params = net.init(jax.random.key(0), x)["params"]
    h = x
    for i in range(3):
        bias, kernel = (np.asarray(params[f"Dense_{i}"][name]) for name in ("bias", "kernel"))
        assert 0 < np.abs(bias).min() and np.abs(bias).max() <= 3**-0.5  # as PyTorch draws them
        h = h @ kernel + bias
        h = np.maximum(h, 0) if i < 2 else h
        if i == 1:
            h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(net.apply({"params": params}, x), h, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", autoencoders.KINDS)
def test_an_autoencoder_trains_as_its_losses_say(kind):
    t = np.random.default_rng(0).uniform(-1, 1, (256, 1))
    X = np.concatenate([t, t**2], 1) @ np.random.default_rng(1).normal(size=(2, 16))
    trained = autoencoders.train(kind, X, 1, epochs=150, batch=32)
    error = np.mean((trained.decode(trained.encode(X)) - X) ** 2)
    variance = np.mean((X - X.mean(0)) ** 2)
    assert np.isfinite(trained.loss) and trained.encode(X).shape == (256, 1)
    if kind == "fair_vae":
        assert error < 0.1 * variance
    else:  # means over coordinates: the code collapses
        assert 0.7 * variance < error < 1.5 * variance


@pytest.mark.slow
def test_an_estimate_that_there_is_not_is_left_out_of_the_figure(tmp_path):
    networks = [
        {"true_dim": 2, "found_dim": 2, "mle": None, "two_nn": 1.9},
        {"true_dim": 3, "found_dim": 3, "mle": 2.8, "two_nn": None},
    ]
    figures.dimension_figure(networks, tmp_path / "dimension.png")
    assert (tmp_path / "dimension.png").is_file()


def test_cells_are_dimensions_times_trials():
    settings = flatnet.Settings(data=Data(name="gp", dims=(2, 5)), trials=2)
    names = [cell.name for cell in list_cells(settings)]
    assert names == ["gp_d2_trial0", "gp_d2_trial1", "gp_d5_trial0", "gp_d5_trial1"]
    assert [cell.name for cell in list_cells(SMALL)] == ["sine"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": Data(name="sinus")}, "did you mean 'sine'"),
        ({"data": Data(name="gp", dims=(101,))}, "config.data.dims must be"),
        ({"compare": Compare(autoencoders=("va",))}, "did you mean 'vae'"),
        ({"build": Construction(alpha_max=1.0)}, "config.build.alpha_max must be"),
        ({"dtype": "bfloat16"}, "config.dtype must be"),
    ],
    ids=["data", "dims", "autoencoders", "build", "dtype"],
)
def test_what_cannot_be_is_a_sentence(changes, words):
    with pytest.raises(ConfigError, match=words):
        flatnet.check(dataclasses.replace(SMALL, **changes))


def test_too_many_devices_are_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="config.devices=99"):
        flatnet.run(dataclasses.replace(SMALL, devices=99), tmp_path, console())
