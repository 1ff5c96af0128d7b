"""One conversion from ConfigDict to dataclasses: what is refused, what the digest names."""

import dataclasses
import hashlib
import json
import re

import pytest
from ml_collections import ConfigDict

from crate_jax import config as configs
from crate_jax.config import (
    Config,
    ConfigError,
    common_settings,
    default,
    differences,
    digest,
    resolve,
)

SECTIONS = [
    f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default_factory)
]
BEYOND = {
    "data": {"data_dir", "workers", "on_bad_image"},
    "train": {
        "eval_every", "checkpoint_every", "log_every", "keep_last", "keep_best", "best_metric",
        "max_bad_steps",
    },
    "mesh": {"preset", "slice", "data", "fsdp", "tensor"},
    "evaluate": {field.name for field in dataclasses.fields(configs.EvaluateConfig)},
}  # fmt: skip
"""What changes no number, written out: where files lie, how often to look, when to give up, the
devices."""


NAN = float("nan")


def _valid(**sections):
    """The least config, with changes by section."""
    train = {"steps": 3} | sections.pop("train", {})
    return {"model": {"name": "crate"}, "train": train, **sections}


def test_every_section_is_covered():
    assert set(SECTIONS) == {
        "data", "optimizer", "schedule", "classify", "mcr2", "ctrl", "train", "evaluate", "mesh",
    }  # fmt: skip


@pytest.mark.parametrize(
    "raw, key, near",
    [
        ({"sede": 1}, "config.sede", "seed"),
        ({"optimiser": {}}, "config.optimiser", "optimizer"),
        ({"data": {"sorce": "digits"}}, "config.data.sorce", "source"),
        ({"optimizer": {"learning_rat": 1.0}}, "config.optimizer.learning_rat", "learning_rate"),
        ({"schedule": {"warmup": 1}}, "config.schedule.warmup", "warmup_steps"),
        ({"classify": {"mixup": 0.8}}, "config.classify.mixup", "mixup_alpha"),
        ({"train": {"batchsize": 8}}, "config.train.batchsize", "batch_size"),
        ({"mesh": {"fdsp": 8}}, "config.mesh.fdsp", "fsdp"),
    ],
)
def test_an_unknown_key_names_the_nearest_at_every_level(raw, key, near):
    with pytest.raises(ConfigError, match=f"{re.escape(key)} is not .*did you mean '{near}'"):
        resolve(raw)


def test_a_key_like_none_lists_the_valid_ones():
    with pytest.raises(
        ConfigError, match=r"zzz is not a setting\. Valid: data, fsdp, preset, .*\."
    ):
        resolve(_valid(mesh={"zzz": 1}))


def test_whole_numbers_are_taken_for_each_other():
    config = resolve(_valid(train={"batch_size": 1e2}, optimizer={"learning_rate": 1}))
    assert (config.train.batch_size, type(config.train.batch_size)) == (100, int)
    assert (config.optimizer.learning_rate, type(config.optimizer.learning_rate)) == (1.0, float)


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("train", "batch_size", 1.5, "config.train.batch_size must be int; got 1.5"),
        ("train", "batch_size", True, "must be int; got True"),
        ("train", "batch_size", None, "must be int; got None"),
        ("train", "steps", "ten", "config.train.steps must be int; got 'ten'"),
        ("optimizer", "learning_rate", "1e-3", "learning_rate must be float; got '1e-3'"),
        ("optimizer", "learning_rate", True, "learning_rate must be float; got True"),
        ("optimizer", "name", 3, "config.optimizer.name must be str; got 3"),
        ("data", "flip", 1, "config.data.flip must be bool; got 1"),
        ("data", "mean", 0.5, "config.data.mean must be a list; got 0.5"),
        ("data", "mean", "0.5", "config.data.mean must be a list; got '0.5'"),
        ("data", "mean", ["grey"], "config.data.mean must be float; got 'grey'"),
        ("data", "crop_area", [0.5], r"config.data.crop_area must have 2 entries; got \[0.5\]"),
        ("train", "init_skip", [3], "config.train.init_skip must be str; got 3"),
    ],
)
def test_a_value_of_the_wrong_type(section, key, value, message):
    with pytest.raises(ConfigError, match=message):
        resolve(_valid(**{section: {key: value}}))


def test_a_value_where_a_section_belongs():
    with pytest.raises(ConfigError, match="config.data is a section of settings; got 3"):
        resolve(_valid(data=3))


def test_lists_become_tuples_and_integers_in_them_floats():
    config = resolve(_valid(data={"mean": [0, 1, 0.5], "channels": 3}, train={"init_skip": ["a"]}))
    assert config.data.mean == (0.0, 1.0, 0.5) and type(config.data.mean[0]) is float
    assert config.train.init_skip == ("a",)
    assert resolve(_valid(model={"name": "x", "list": [1, [2]]})).model["list"] == (1, (2,))


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"train": {"epochs": 1.0}}, "exactly one of config.train.steps and config.train.epochs"),
        ({"train": {"steps": None}}, "exactly one of config.train.steps and config.train.epochs"),
        ({"train": {"batch_size": 10, "accumulate": 4}}, "batch_size=10 .*accumulate=4"),
        ({"train": {"accumulate": 0}}, "config.train.accumulate must be at least 1; got 0"),
        ({"train": {"batch_size": 0}}, "config.train.batch_size must be at least 1; got 0"),
        ({"train": {"eval_batch_size": -8}}, "eval_batch_size must be at least 1; got -8"),
        ({"data": {"image_size": 0}}, "config.data.image_size must be at least 1; got 0"),
        ({"data": {"num_classes": 0}}, "config.data.num_classes must be at least 1; got 0"),
        ({"schedule": {"warmup_steps": 1, "warmup_epochs": 1.0}}, "warmup_epochs, not both"),
        ({"data": {"mean": (0.1, 0.2, 0.3)}}, "config.data.mean has 3 entries .*channels=1"),
        ({"data": {"channels": 3, "std": (1.0, 2.0)}}, "config.data.std has 2 .*channels=3"),
        ({"data": {"views": 5}}, "batch_size=128 .*views=5"),
        ({"mcr2": {"lmbda": 0.1, "lmb": 0.05}}, "mcr2.lmbda or .lmb, not both"),
        ({"classify": {"on_value": 0.9}}, "on_value and .off_value together"),
        ({"classify": {"off_value": 0.1}}, "on_value and .off_value together"),
    ],
)  # fmt: skip
def test_settings_that_contradict(sections, message):
    with pytest.raises(ConfigError, match=message):
        resolve(_valid(**sections))


@pytest.mark.parametrize(
    "allowed, settings",
    [
        ("at least 1", {
            "train.batch_size": [0], "data.image_size": [-1], "data.views": [0],
            "evaluate.components": [0], "evaluate.neighbors": [0], "evaluate.cluster_samples": [0],
        }),
        ("at least 0", {
            "data.workers": [-1], "data.crop_padding": [-4], "data.randaugment_layers": [-1],
            "optimizer.learning_rate": [-1e-3, NAN], "optimizer.weight_decay": [-0.1],
            "schedule.warmup_steps": [-1], "schedule.warmup_epochs": [-1.0],
            "classify.mixup_alpha": [-0.8], "classify.cutmix_alpha": [-1.0],
            "classify.ortho_penalty": [-1.0], "train.measure_batch": [-1],
            "mcr2.gamma2": [-1.0], "mcr2.lmbda": [-1.0], "mcr2.lmb": [-1.0],
            "train.eval_every": [-1], "train.checkpoint_every": [-1], "train.log_every": [-1],
            "train.keep_last": [-1], "train.keep_best": [-1], "train.max_bad_steps": [-1],
        }),
        ("at least 0 and below 1", {
            "train.ema_decay": [-0.1, 1.0, NAN], "classify.label_smoothing": [-0.1, 1.0],
            "mcr2.smoothing": [1.0],
        }),
        ("a fraction from 0 to 1", {
            "data.label_noise": [-0.1, 1.1, NAN], "data.grayscale": [2.0],
            "data.jitter_probability": [-1.0],
        }),
        ("above 0 and at most 1", {"evaluate.ensc_tau": [0.0, 1.5, NAN]}),
        ("above 0", {
            "optimizer.clip_norm": [0.0, -1.0], "mcr2.eps_sq": [0.0], "mcr2.gamma1": [0.0],
            "schedule.step_factor": [0.0], "evaluate.svm_c": [0.0], "evaluate.ensc_gamma": [0.0],
        }),
        ("at least 0 in every entry", {
            "data.jitter": [(0.4, 0.4, 0.4, -0.1)], "schedule.milestones": [(-1.0,)],
        }),
        ("above 0 in every entry", {"data.std": [(0.0,)]}),
        ("two fractions LOW <= HIGH, above 0 and at most 1", {
            "data.crop_area": [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1)],
        }),
        ("float32 or bfloat16", {"optimizer.mu_dtype": ["bf16"]}),
    ],
)  # fmt: skip
def test_numbers_out_of_range(allowed, settings):
    for name, values in settings.items():
        section, key = name.split(".")
        for value in values:
            message = f"config.{name} must be {allowed}; got {value!r}."
            with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
                resolve(_valid(**{section: {key: value}}))


def test_the_ends_of_the_ranges_are_allowed():
    resolve(_valid(
        data={"crop_area": (1.0, 1.0), "crop_padding": 0},
        optimizer={"learning_rate": 0.0, "weight_decay": 0.0, "mu_dtype": "bfloat16"},
        train={"measure_batch": 0, "keep_last": 0, "max_bad_steps": 0, "log_every": 0},
    ))  # fmt: skip


def _changed(value):
    """Another valid value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if value is None:
        return 1.0
    return (*value[:-1], "other") if isinstance(value, tuple) else "other"


def _with(config, section, **changes):
    part = dataclasses.replace(getattr(config, section), **changes)
    return dataclasses.replace(config, **{section: part})


TASKS = ("classify", "mcr2", "ctrl")


@pytest.mark.parametrize("section", SECTIONS)
def test_the_digest_changes_with_exactly_the_settings_that_change_numbers(section):
    config = resolve(_valid(system=section if section in TASKS else "classify"))
    for field in dataclasses.fields(getattr(config, section)):
        value = getattr(getattr(config, section), field.name)
        other = _with(config, section, **{field.name: _changed(value)})
        moved = digest(other) != digest(config)
        assert moved == (field.name not in BEYOND.get(section, ())), f"{section}.{field.name}"


def test_the_digest_changes_with_the_seed_the_task_and_the_model():
    config = resolve(_valid())
    others = [{"seed": 1}, {"system": "other"}, {"model": {"name": "vit"}}]
    digests = {digest(dataclasses.replace(config, **other)) for other in [{}, *others]}
    assert len(digests) == 4


def test_a_section_of_another_task_is_no_part_of_the_digest():
    config, moved = resolve(_valid()), resolve(_valid(mcr2={"eps_sq": 0.1}))
    assert digest(moved) == digest(config)


def test_settings_that_came_later_leave_the_digests_of_before():
    config = resolve(_valid())
    assert digest(config) == "9f1d9f313e75"  # of the settings before data.views and the like
    assert "views" not in configs.numeric_part(config)["data"]
    assert configs.numeric_part(config, whole=True)["data"]["views"] == 1


def test_the_digest_does_not_depend_on_the_order_or_the_spelling_of_keys():
    a = resolve({"model": {"name": "crate", "eta": 0.1}, "train": {"steps": 3, "batch_size": 8}})
    b = resolve({"train": {"batch_size": 8.0, "steps": 3}, "model": {"eta": 0.1, "name": "crate"}})
    assert digest(a) == digest(b)


def test_the_digest_hashes_the_sorted_numeric_part():
    numeric = configs.numeric_part(resolve(_valid()))
    assert "workers" not in numeric["data"] and "mesh" not in numeric
    text = json.dumps(numeric, sort_keys=True)
    assert digest(resolve(_valid())) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_default_is_the_dataclasses_and_back():
    raw = default()
    assert isinstance(raw, ConfigDict) and set(raw) == {f.name for f in dataclasses.fields(Config)}
    raw.train.steps = 3
    raw.model = ConfigDict({"name": "crate"})
    assert resolve(raw) == resolve(_valid())


def test_optional_settings_of_the_default_take_their_type_only():
    raw = default()
    raw.optimizer.b1, raw.optimizer.mu_dtype = 0.5, "bfloat16"
    raw.train.steps = 4
    assert resolve(raw).optimizer.b1 == 0.5
    with pytest.raises(TypeError):
        raw.train.epochs = "many"


def test_a_config_survives_json():
    config = resolve(_valid(data={"mean": (0.5, 0.5, 0.5), "channels": 3}))
    again = resolve(json.loads(json.dumps(configs.as_dict(config))))
    assert again == config and digest(again) == digest(config)


def test_differences_have_a_line_a_key():
    old = {"a": 1, "b": {"c": 2, "d": 3}, "gone": 4}
    new = {"a": 1, "b": {"c": 5, "d": 3}, "new": 6}
    assert differences(old, new) == [
        "config.b.c: 2 -> 5", "config.gone: 4 -> None", "config.new: None -> 6",
    ]  # fmt: skip
    assert differences(old, old) == []


def test_what_processes_must_share_is_all_but_where_each_finds_and_loads_its_data():
    settings = common_settings(resolve(_valid(train={"eval_every": 7})))
    assert settings["config.train.eval_every"] == "7" and settings["config.mesh.preset"] == '"dp"'
    assert "config.data.source" in settings
    assert not {"config.data.workers", "config.data.data_dir"} & settings.keys()
    other = resolve(_valid(data={"workers": 3, "data_dir": "/x"}, train={"eval_every": 7}))
    assert common_settings(other) == settings
    assert common_settings(resolve(_valid(profile=True, train={"eval_every": 7}))) != settings
