"""Saves, settings and the whole study of the games."""

import dataclasses
import io
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from crate_jax import studies
from crate_jax.config import ConfigError
from crate_jax.data.subspaces import SubspaceLaw
from crate_jax.studies import games
from crate_jax.studies.games import methods, play, samples, saves
from crate_jax.studies.games.settings import Baselines, Data, Play, Players, Responses, list_runs


def test_a_save_comes_back_and_a_damaged_one_does_not(tmp_path):
    state = play.State(jnp.ones(2), {"a": jnp.zeros(1)}, optax.EmptyState(), jnp.int32(3))
    records = [play.Record(1.0, -0.1, 0.0), play.Record(2.0, -0.2, 0.0)]
    file = tmp_path / "state.npz"
    assert saves.read(file, state) is None
    saves.write(file, state, records)
    back, told = saves.read(file, state)
    np.testing.assert_array_equal(back.F, state.F)
    assert back.follower == 3 and told == records
    assert saves.read(file, state._replace(F=jnp.ones(3))) is None
    file.write_bytes(file.read_bytes()[:100])
    assert saves.read(file, state) is None


def test_the_values_of_a_varied_setting_are_runs():
    settings = games.Settings(vary="noise", over=(0.0, 1e-2))
    names, runs = zip(*list_runs(settings), strict=True)
    assert names == ("noise=0", "noise=0.01") and runs[1].data.law.noise == 1e-2
    dims = games.Settings(
        game="ssp", vary="dim", over=(4.0,), data=Data(law=SubspaceLaw((9,), (2,)))
    )
    assert list_runs(dims)[0][1].data.law.dims == (4,)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"game": "mnp"}, "config.game must be one of msp, ssp"),
        ({"precision": "float16"}, "config.precision must be float32 or float64"),
        ({"vary": "nois", "over": (1.0,)}, "did you mean 'noise'"),
        ({"vary": "noise"}, "set config.vary and config.over together"),
        ({"methods": ("ctrl", "cgann")}, "config.methods has 'cgann'; did you mean 'cgan'"),
        ({"methods": ("pca", "pca")}, "an entry twice"),
        ({"methods": ()}, "config.methods is empty"),
        ({"game": "ssp"}, "one entry in config.data.law.sizes"),
        (
            {"game": "ssp", "methods": ("cvae",), "data": Data(law=SubspaceLaw((9,), (2,)))},
            "has no classes",
        ),
        ({"data": Data(source="digit")}, "config.data.source='digit'; did you mean"),
        ({"play": Play(batch=2000)}, "config.play.batch=2000 is more than the 1500 samples"),
        ({"play": Play(leader="sgd")}, "config.play.leader must be one of adam, scalar_adam"),
        ({"players": Players(eps_sq=0.0)}, "config.players.eps_sq must be above 0"),
        ({"seed": -1}, "config.seed must be at least 0"),
        ({"data": Data(law=SubspaceLaw((9,), (2,)))}, "config.game='msp' wants two classes"),
        ({"vary": "features", "over": (0.0,)}, "config.players.features must be at least 1; got 0"),
        ({"vary": "features", "over": (8.5,)}, "config.over must be whole numbers for 'features'"),
        ({"vary": "eps_sq", "over": (1.0, 0.0)}, "config.players.eps_sq must be above 0"),
        ({"vary": "noise", "over": (0.1, 0.1 + 1e-9)}, "config.over has noise=0.1 twice"),
    ],
)
def test_what_cannot_be_is_a_sentence(changes, words):
    with pytest.raises(ConfigError, match=words):
        games.check(dataclasses.replace(games.Settings(), **changes))


def test_a_batch_of_more_images_than_there_are_is_a_sentence():
    settings = games.Settings(data=Data(source="digits"), play=Play(batch=1439))
    games.check(settings)
    with pytest.raises(ConfigError, match="batch=1439 is more than the 1,438 samples of digits"):
        samples.load(settings)


@pytest.mark.parametrize("lost", ["quality", "consistency"])
def test_a_game_that_diverges_is_a_sentence(lost):
    course = {"quality": np.ones(4), "consistency": -np.ones(4)}
    methods.check_course("ctrl", course)
    course[lost][2:] = np.nan
    with pytest.raises(ConfigError, match="ctrl: Q or C is no finite number from step 3 on"):
        methods.check_course("ctrl", course)


LITTLE = games.Settings(
    data=Data(law=SubspaceLaw(sizes=(20, 20), dims=(2, 3), ambient=7)),
    players=Players(features=6, width=5),
    play=Play(batch=20, epochs=2, inner_steps=5, network_inner_steps=3, save_seconds=1e-9),
    responses=Responses(follower_steps=3, leader_steps=3),
    baselines=Baselines(layers=1, width=4, noise=2, code=2, epochs=1),
    methods=("ctrl", "ctrl_fcnn", "pca", "vae", "cvae", "gan", "cgan", "infogan"),
)


@pytest.mark.slow
def test_every_method_is_carried_out_and_a_stopped_game_goes_on(tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), width=200)
    assert studies.run(LITTLE, tmp_path / "whole", console) == 0
    results = json.loads((tmp_path / "whole/results.json").read_text())
    assert [run["method"] for run in results["runs"]] == list(LITTLE.methods)
    assert len(results["claims"]) == 10 and results["runs"][2]["numbers"]["residual"] < 1e-6
    page = (tmp_path / "whole/index.html").read_text()
    assert page.count("data:image/png") == 6 + 5 + 4 + 5 * 5

    def stop_later(path, state, records, write=saves.write):
        write(path, state, records)
        if len(records) == 2:
            raise KeyboardInterrupt

    only = dataclasses.replace(LITTLE, methods=("ctrl",))
    monkeypatch.setattr(saves, "write", stop_later)
    with pytest.raises(KeyboardInterrupt):
        studies.run(only, tmp_path / "stopped", console)
    monkeypatch.undo()
    assert studies.run(only, tmp_path / "stopped", console) == 0
    with (
        np.load(tmp_path / "whole/runs/ctrl/state.npz") as a,
        np.load(tmp_path / "stopped/runs/ctrl/state.npz") as b,
    ):
        assert sorted(a) == sorted(b) and len(a["quality"]) == 4
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, words",
    [
        ({"methods": ("ctrl",), "play": Play(batch=20, leader_rate=1e30)}, "ctrl: Q or C is no"),
        (
            {"methods": ("vae",), "baselines": Baselines(learning_rate=1e30)},
            "lower config.baselines.learning_rate",
        ),
    ],
)
def test_what_diverges_ends_in_a_sentence(changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        studies.run(dataclasses.replace(LITTLE, **changes), tmp_path, Console(file=io.StringIO()))


@pytest.mark.slow
def test_one_subspace_and_images_run_too(tmp_path):
    console = Console(file=io.StringIO(), width=200)
    law = SubspaceLaw(sizes=(40,), dims=(3,), ambient=7)
    one = dataclasses.replace(
        LITTLE, game="ssp", data=Data(law=law), methods=("ctrl", "gan"), precision="float64",
        vary="features", over=(5.0, 9.0),
    )  # fmt: skip
    assert studies.run(one, tmp_path / "one", console) == 0
    results = json.loads((tmp_path / "one/results.json").read_text())
    assert len(results["runs"]) == 4 and len(results["claims"]) == 22
    digits = dataclasses.replace(
        LITTLE, data=Data(source="digits", test=100), methods=("ctrl", "pca"),
        play=dataclasses.replace(LITTLE.play, batch=700, epochs=1),
    )  # fmt: skip
    assert studies.run(digits, tmp_path / "digits", console) == 0
    assert "samples are not clean" in (tmp_path / "digits/index.html").read_text()
