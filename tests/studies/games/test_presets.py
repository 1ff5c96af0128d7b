"""Every preset of the games is one that can be played, and its smoke size stays what it is."""

import pathlib
import runpy

import pytest

from crate_jax import studies
from crate_jax.studies.games.settings import list_runs

CONFIGS = pathlib.Path(__file__).parents[3] / "configs/ctrl"
FILES = {game: runpy.run_path(str(CONFIGS / f"{game}.py")) for game in ("msp", "ssp")}
PRESETS = [(game, preset) for game, file in FILES.items() for preset in file["PRESETS"]]


@pytest.mark.parametrize("game, preset", PRESETS)
def test_presets_resolve_and_vary_the_same_setting_when_small(game, preset):
    get_config = FILES[game]["get_config"]
    full, long, small = (
        studies.resolve(get_config(f"preset={preset}{more}")) for more in ("", ",long", ",smoke")
    )
    assert full.game == long.game == small.game == game
    assert (full.vary, full.methods) == (small.vary, small.methods)
    assert len(list_runs(small)) == min(2, len(list_runs(full)))
    assert long.play.batch == 0 and small.data.source == "subspaces"
    assert sum(small.data.law.sizes) <= 120
