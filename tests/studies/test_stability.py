"""The grid of runs, and one of them."""

import io
import json

import pytest
from rich.console import Console

from crate_jax.config import ConfigError, resolve
from crate_jax.recipe_ctrl import grid_member
from crate_jax.studies import stability
from crate_jax.studies.stability.settings import check, members


def test_each_run_changes_one_setting_of_the_base():
    settings = stability.Settings(repeats=2)
    grid = members(settings)
    assert len(grid) == 2 * 2 * (1 + 8) and len({member.name for member in grid}) == len(grid)
    base = {name: getattr(settings, name) for name in ("batch", "rate", "width", "features")}
    for member in grid:
        other = {name for name, value in base.items() if getattr(member, name) != value}
        assert other == ({member.changed} - {"base"})
    config = resolve(grid_member(settings, grid[-1]))
    assert (config.seed, config.model["encoder"], config.model["nz"]) == (1, "conv", 64)


def test_wrong_settings_are_said():
    for change, sentence in (
        ({"encoders": "csc,cnn"}, "config.encoders: 'cnn'"),
        ({"rates": (0.0,)}, "config.rates must be above 0 in every entry"),
        ({"normalise_by": "both"}, "config.normalise_by='both'"),
        ({"objective": "all"}, "config.objective='all'"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            check(stability.Settings(**change))


@pytest.mark.slow
def test_a_small_grid_ends_in_a_page(tmp_path):
    settings = stability.Settings(
        steps=4, points=2, width=8, features=8, batch=16, batches=(), rates=(1e6,), widths=(),
        feature_counts=(), encoders="csc",
    )  # fmt: skip
    assert stability.run(settings, tmp_path, Console(file=io.StringIO(), width=200)) == 0
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [record["changed"] for record in runs] == ["base", "rate"]
    assert [step for step, _ in runs[0]["curve"]] == [2, 4]
    assert runs[1]["collapsed"]
    assert (tmp_path / "index.html").read_text().count("data:image/png") == 2
