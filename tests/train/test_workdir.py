import dataclasses
import json

import jax
import numpy as np
import pytest

from crate_jax import config as configs
from crate_jax.config import ConfigError, MeshConfig, digest, resolve
from crate_jax.train import checkpoint, workdir
from crate_jax.train.checkpoint import save_params

CONFIG = resolve({"model": {"name": "crate", "width": 8}, "train": {"steps": 3}})


def _train(**changes):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **changes))


def test_a_fresh_directory_gets_the_config_and_its_digest(tmp_path):
    workdir.claim(tmp_path / "a" / "b", CONFIG)
    saved = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert saved["digest"] == digest(CONFIG)
    assert resolve(saved["config"]) == CONFIG
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["config.json"]


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_text()
    other = dataclasses.replace(_train(batch_size=64, log_every=7), model={"name": "vit"}, seed=2)
    with pytest.raises(ConfigError) as error:
        workdir.claim(tmp_path, other)
    lines = str(error.value).splitlines()
    assert [line.strip() for line in lines[1:-1]] == [
        "config.model.name: 'crate' -> 'vit'",
        "config.model.width: 8 -> None",
        "config.seed: 0 -> 2",
        "config.train.batch_size: 128 -> 64",
    ]
    assert (tmp_path / "config.json").read_text() == before


def test_settings_that_change_no_number_may_change_and_are_noted(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    data = dataclasses.replace(CONFIG.data, workers=4, data_dir="/elsewhere")
    other = dataclasses.replace(
        _train(eval_every=7, keep_best=3), data=data, mesh=MeshConfig(fsdp=2)
    )
    workdir.claim(tmp_path, other)
    assert resolve(json.loads((tmp_path / "config.json").read_text())["config"]) == other


def test_converted_weights_are_not_trained_over(tmp_path):
    save_params(tmp_path, {"w": 1.0}, {"name": "crate"})
    with pytest.raises(ConfigError, match="holds converted weights and no run.*init_from="):
        workdir.claim(tmp_path, CONFIG)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("text", ["", '{"digest": "a"}', "[]"])
def test_a_config_file_that_was_cut_off_gets_a_sentence(text, tmp_path):
    workdir.claim(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="config.json cannot be read .*Put it back, or delete"):
        workdir.claim(tmp_path, CONFIG)
    assert (tmp_path / "config.json").read_text() == text


def _checkpoint(directory, step, meta):
    with checkpoint.Checkpoints(directory, keep_last=9) as checkpoints:
        checkpoints.save(step, {"w": np.ones(3)}, meta)
        checkpoints.wait()


def test_a_config_file_that_was_lost_is_known_to_the_newest_good_checkpoint(tmp_path):
    saved = configs.as_dict(CONFIG)
    _checkpoint(tmp_path, 1, {"model": {}, "config": saved})
    _checkpoint(tmp_path, 2, {"model": {}, "config": saved | {"seed": 7}})
    (tmp_path / "checkpoints" / "2" / "meta" / "metadata").write_text("")
    with pytest.raises(ConfigError, match="holds a run of another config:\n  config.seed: 0 -> 2"):
        workdir.claim(tmp_path, dataclasses.replace(CONFIG, seed=2))
    assert not (tmp_path / "config.json").exists()
    workdir.claim(tmp_path, CONFIG)
    assert json.loads((tmp_path / "config.json").read_text())["digest"] == digest(CONFIG)


def test_what_process_0_sees_on_disk_holds_for_all(tmp_path, monkeypatch):
    """Another host may see a directory as it was before, or a part of it."""
    _checkpoint(tmp_path, 1, {"model": {}})
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    workdir._check(tmp_path, CONFIG)


def test_a_setting_that_came_later_has_its_default_in_a_run_from_before(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    del saved["config"]["data"]["views"], saved["config"]["evaluate"]
    path.write_text(json.dumps(saved))
    noisy = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, label_noise=0.5))
    with pytest.raises(ConfigError, match=r"config.data.label_noise: 0.0 -> 0.5\n"):
        workdir.claim(tmp_path, noisy)
    workdir.claim(tmp_path, CONFIG)


def test_a_directory_in_which_nothing_was_begun_is_given_up(tmp_path):
    other = dataclasses.replace(CONFIG, seed=2)
    workdir.claim(tmp_path, CONFIG)
    workdir.release(tmp_path)
    workdir.claim(tmp_path, other)
    (tmp_path / "metrics.jsonl").write_text("")
    workdir.release(tmp_path)
    with pytest.raises(ConfigError, match="holds a run of another config"):
        workdir.claim(tmp_path, CONFIG)
