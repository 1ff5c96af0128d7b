"""Every shipped config: it loads, says what it is, holds the published numbers, and trains."""

import json
import math
import pathlib
import runpy

import jax
import pytest

from crate_jax import models, optim, run, studies, systems
from crate_jax.config import ConfigError, resolve

ROOT = pathlib.Path(__file__).parents[1] / "configs"
SHIPPED = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))
CONTENT = {file: runpy.run_path(str(ROOT / file)) for file in SHIPPED}
STUDIES = [file for file in SHIPPED if "study" in CONTENT[file]["get_config"](None)]
FILES = [file for file in SHIPPED if file not in STUDIES]

CRATE, FINETUNE = "crate/imagenet1k.py", "crate/finetune.py"
ALPHA, ALPHA_FINETUNE = "crate_alpha/imagenet21k.py", "crate_alpha/finetune_imagenet1k.py"
MCR2, SELF_SUPERVISED = "mcr2/classify.py", "mcr2/self_supervised.py"
CTRL = {name: f"csc_ctrl/{name}.py" for name in ("mnist", "cifar10", "stl10", "celeba", "imagenet")}
EXAMPLES = 1_000_000


def _arguments(file):
    """One argument string for every value that an argument of the file takes."""
    content = CONTENT[file]
    if file == "cifar10.py":
        return [f"model={m},size={s}" for m in models.MODELS for s in content["SIZES"]]
    if file == CRATE:
        sizes = [f"model={m},variant={v}" for m in ("crate", "vit") for v in models.MODELS[m][1]]
        presets = [f"model={m},preset={p}" for m in ("crate", "vit") for p in content["PRESETS"]]
        return ["variant=B/8", *sizes, *presets]
    if file == FINETUNE:
        variants = [f"variant={v}" for v in models.MODELS["crate"][1]]
        return [*variants, *(f"data={d}" for d in content["DATA"])]
    if file in (ALPHA, ALPHA_FINETUNE):
        variants = [f"variant={v}/14" for v in content["VARIANTS"]]
        patches = [f"variant=B/{p}" for p in (32, 16, 8)]
        return [*variants, *patches, *(f"variant=B/32,ladder={row}" for row in content["LADDER"])]
    if file == MCR2:
        presets = [f"data={d},preset={p}" for d in content["DATA"] for p in content["PRESETS"]]
        return [*presets, "data=mnist,corruption=0.3"]
    if file == SELF_SUPERVISED:
        return [f"data={d}" for d in content["DATA"]]
    if file in CTRL.values():
        small = ["size=cpu"] if "SIZES" in content else []
        plain = [f"encoder=conv,objective={o}" for o in ("binary", "multi", "alternating")]
        return ["encoder=csc", *plain, "tied=init", "tied=true", *small]
    return [None]


def _config(file, arg=None):
    return resolve(CONTENT[file]["get_config"](arg))


def _takes(file, name):
    return f"``{name}``" in CONTENT[file]["get_config"].__doc__


EVERY = [(file, arg) for file in FILES for arg in _arguments(file)]


@pytest.mark.parametrize("file", SHIPPED)
def test_a_file_says_its_command_what_to_expect_and_what_it_costs(file):
    text = CONTENT[file]["__doc__"]
    assert f"python -m crate_jax.main --config configs/{file}" in text
    assert "Expected" in text and "Cost" in text
    for name, table in (("preset", "PRESETS"), ("ladder", "LADDER")):
        for value in CONTENT[file].get(table, ()):
            assert value in text or name == "ladder" and file == ALPHA_FINETUNE


@pytest.mark.parametrize("file", SHIPPED)
def test_the_arguments_are_documented_and_an_unknown_one_is_refused(file):
    get_config = CONTENT[file]["get_config"]
    with pytest.raises(ConfigError, match="has no argument 'zzz'.*Valid: ") as error:
        get_config("zzz=1")
    for name in str(error.value).partition("Valid: ")[2].rstrip(".").split(", "):
        assert f"``{name}``" in get_config.__doc__


@pytest.mark.parametrize("file", STUDIES)
def test_a_study_resolves_and_its_smoke_size_is_another(file):
    get_config = CONTENT[file]["get_config"]
    full, smoke = studies.resolve(get_config(None)), studies.resolve(get_config("smoke"))
    assert full.study == smoke.study and full != smoke
    raw = get_config(None).unlock()
    raw.sead = 1
    with pytest.raises(ConfigError, match="config.sead is not a setting; did you mean 'seed'"):
        studies.resolve(raw)


@pytest.mark.parametrize("file, arg", EVERY)
def test_full_size_is_a_run_without_its_data(file, arg):
    config = _config(file, arg)
    devices = jax.devices()[: math.gcd(config.train.batch_size, 8)]  # 300 images go over four
    made = run.prepare(config, examples=EXAMPLES, devices=devices)
    train = config.train
    steps = train.steps or round(train.epochs * EXAMPLES * config.data.views / train.batch_size)
    assert made.total_steps == steps
    if config.system == "classify":
        assert made.system.module.num_classes == config.data.num_classes


@pytest.mark.parametrize("file", [file for file in FILES if file != "quickstart.py"])
def test_a_value_that_no_table_has_is_refused_with_the_list(file):
    names = ("variant", "model", "encoder", "data")
    name = next(name for name in names if _takes(file, name))
    with pytest.raises(ConfigError, match=f"config argument {name}='Q'.*Valid: "):
        _config(file, f"{name}=Q")


# The recipes, written out from the papers and the released code.


@pytest.mark.parametrize(
    "preset, name, rate, decay, batch, epochs, schedule, warmup, betas",
    [
        ("paper", "lion", 2.4e-4, 0.5, 2048, 150, "cosine", 5, (0.9, 0.99)),
        ("repo", "lion", 2e-4, 0.05, 512, 200, "epoch_cosine", 20, (0.9, 0.99)),
        ("defaults", "adamw", 4e-4, 0.1, 512, 90, "epoch_cosine", 20, (0.9, 0.999)),
    ],
)
def test_crate_on_imagenet(
    preset, name, rate, decay, batch, epochs, schedule, warmup, betas
):  # fmt: skip
    config = _config(CRATE, f"preset={preset}")
    optimizer, data = config.optimizer, config.data
    assert (optimizer.name, optimizer.learning_rate) == (name, rate)
    assert (optimizer.weight_decay, optimizer.decay_mask) == (decay, "all")
    assert optimizer.clip_norm is None
    h = optim.hyperparameters(optimizer)
    assert (h["b1"], h["b2"]) == betas
    assert (config.train.batch_size, config.train.epochs) == (batch, epochs)
    assert (config.schedule.name, config.schedule.warmup_epochs) == (schedule, warmup)
    assert config.schedule.final == 0.0 and config.train.ema_decay == 0.0
    assert config.classify.label_smoothing == 0.1
    assert config.classify.mixup_alpha == config.classify.cutmix_alpha == 0.0
    assert (data.image_size, data.crop, data.crop_area) == (224, "inception", (0.08, 1.0))
    assert data.flip and data.randaugment_layers == 0 and data.interpolation == "bilinear"
    assert (data.eval_resize, data.eval_resize_size) == ("shorter", 256)
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (data.num_classes, data.eval_split) == (1000, "validation")


@pytest.mark.parametrize(
    "name, classes, rate, epochs",
    [
        ("cifar10", 10, 5e-5, 200),
        ("cifar100", 100, 5e-5, 200),
        ("flowers", 102, 1e-4, 400),
        ("pets", 37, 1e-4, 400),
    ],
)
def test_crate_fine_tuning(name, classes, rate, epochs):
    config = _config(FINETUNE, f"data={name}")
    optimizer, data = config.optimizer, config.data
    assert (optimizer.name, optimizer.learning_rate) == ("adamw", rate)
    assert (optimizer.weight_decay, optimizer.decay_mask) == (0.01, "all")
    h = optim.hyperparameters(optimizer)
    assert (h["b1"], h["b2"], h["eps"]) == (0.9, 0.999, 1e-8)
    assert (config.train.batch_size, config.train.epochs) == (256, epochs)
    assert (config.schedule.name, config.schedule.warmup_epochs) == ("epoch_cosine", 0.0)
    assert config.classify.label_smoothing == 0.0
    assert config.classify.mixup_alpha == config.classify.cutmix_alpha == 0.0
    assert (data.image_size, data.num_classes) == (224, classes)
    assert data.crop == "inception" and data.flip and data.train_split == "train"
    randaugment = (data.randaugment_layers, data.randaugment_magnitude, data.randaugment_kind)
    assert randaugment == (2, 14.0, "torchvision")
    assert data.eval_resize == "square"
    assert config.train.init_skip == ("head", "norm")  # the released mlp_head: LayerNorm and Linear


@pytest.mark.parametrize(
    "file, rate, classes, skip, on_off, augment",
    [
        (ALPHA, 8e-4, 19167, (), (None, None), (0, "timm")),
        (ALPHA_FINETUNE, 1.6e-4, 1000, ("head",), (0.9, 1e-4), (2, "timm")),
    ],
)
def test_crate_alpha(file, rate, classes, skip, on_off, augment):
    config = _config(file)
    optimizer, data, classify = config.optimizer, config.data, config.classify
    assert optimizer.name == "adamw" and math.isclose(optimizer.learning_rate, rate)
    h = optim.hyperparameters(optimizer)
    assert (h["b1"], h["b2"], h["eps"], h["mu_dtype"]) == (0.9, 0.95, 1e-8, "bfloat16")
    assert (optimizer.weight_decay, optimizer.decay_mask) == (0.1, "kernels")
    assert optimizer.clip_norm == 1.0
    assert (config.train.batch_size, config.train.epochs) == (4096, 91)
    assert (config.schedule.name, config.schedule.warmup_epochs) == ("cosine", 10)
    assert math.isclose(config.schedule.final * optimizer.learning_rate, 1e-6)
    assert (classify.mixup_alpha, classify.cutmix_alpha) == (0.8, 1.0)
    assert classify.label_smoothing == 0.0
    assert (classify.on_value, classify.off_value) == on_off
    assert config.train.init_skip == skip and config.train.ema_decay == 0.0
    assert (data.num_classes, data.image_size, config.seed) == (classes, 224, 0)
    assert (data.crop, data.crop_area, data.flip) == ("inception", (0.08, 1.0), True)
    assert (data.randaugment_layers, data.randaugment_kind) == augment
    assert data.randaugment_magnitude == 9.0
    assert (data.eval_resize, data.eval_resize_size) == ("shorter", 256)
    assert data.eval_interpolation == "area"
    module = run.prepare(config, examples=EXAMPLES).system.module
    assert (module.drop_path, module.dropout, module.eta, module.lmbda) == (0.0, 0.0, 0.1, 0.1)
    assert (module.width, module.depth, module.heads, module.patch) == (1024, 24, 16, 14)


@pytest.mark.parametrize("file", [ALPHA, ALPHA_FINETUNE])
def test_the_ladder_adds_one_change_a_row(file):
    rows = [
        ("vanilla", False, False, False),
        ("overcomplete", True, False, False),
        ("decoupled", True, True, False),
        ("residual", True, True, True),
    ]
    for row, *switches in rows:
        model = _config(file, f"variant=B/32,ladder={row}").model
        assert [model["overcomplete"], model["decoupled"], model["residual"]] == switches


@pytest.mark.parametrize(
    "preset, epochs, rate", [("readme", 500.0, 0.01), ("defaults", 800.0, 0.001)]
)
def test_mcr2_on_cifar10(preset, epochs, rate):
    config = _config(MCR2, f"data=cifar10,preset={preset},corruption=0.2")
    optimizer, data, train = config.optimizer, config.data, config.train
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("momentum", rate, 0.9)
    assert (optimizer.weight_decay, optimizer.decay_mask) == (5e-4, "all")
    assert (train.batch_size, train.epochs) == (1000, epochs)
    assert (config.schedule.name, config.schedule.step_factor) == ("multistep", 0.1)
    assert config.schedule.milestones == (200.0, 400.0, 600.0)
    assert (config.mcr2.eps_sq, config.mcr2.gamma1, config.mcr2.gamma2) == (0.5, 1.0, 1.0)
    assert (data.crop, data.crop_padding, data.flip, data.image_size) == ("pad_to", 8, True, 32)
    assert (data.mean, data.std) == ((0.0,), (1.0,))
    assert (data.label_noise, data.label_noise_seed) == (0.2, 10)
    module = run.prepare(config, examples=EXAMPLES).system.module
    assert (module.depths, module.width, module.feature_dim) == ((2, 2, 2, 2), 64, 128)
    assert module.head and module.unit_norm
    assert (config.evaluate.components, config.evaluate.neighbors) == (30, 5)


def test_mcr2_self_supervised():
    config = _config(SELF_SUPERVISED)
    mcr2, data, train = config.mcr2, config.data, config.train
    assert (mcr2.gamma1, mcr2.gamma2, mcr2.eps_sq, mcr2.classes) == (20.0, 0.05, 0.5, "images")
    assert (train.batch_size, data.views, train.epochs, data.shuffle) == (1000, 50, 100.0, False)
    assert (config.optimizer.learning_rate, config.schedule.milestones) == (0.1, (30.0, 60.0))
    assert (data.crop, data.crop_area, data.flip) == ("inception", (0.08, 1.0), True)
    assert (data.jitter, data.jitter_probability) == ((0.4, 0.4, 0.4, 0.1), 0.8)
    assert data.grayscale == 0.2
    assert (config.evaluate.ensc_gamma, config.evaluate.ensc_tau) == (300.0, 1.0)
    assert not run.prepare(config, examples=50_000).system.module.head
    assert run.prepare(config, examples=50_000).total_steps == 100 * 2500


@pytest.mark.parametrize(
    "name, net, nz, batch, steps, objective, inner, betas",
    [
        ("mnist", "dcgan", 128, 2048, 4_500, "multi", 1, (0.5, 0.999)),
        ("cifar10", "dcgan", 100, 1600, 45_000, "alternating", 2, (0.5, 0.999)),
        ("stl10", "sngan", 128, 300, 450_000, "binary", 1, (0.0, 0.9)),
        ("celeba", "sngan", 128, 300, 450_000, "binary", 1, (0.0, 0.9)),
        ("imagenet", "sngan", 128, 300, 450_000, "binary", 1, (0.0, 0.9)),
    ],
)
def test_closed_loop_transcription(name, net, nz, batch, steps, objective, inner, betas):
    config = _config(CTRL[name], "encoder=conv")
    assert (config.system, config.model["name"], config.model["nz"]) == ("ctrl", net, nz)
    assert (config.train.batch_size, config.train.steps) == (batch, steps)
    ctrl, optimizer = config.ctrl, config.optimizer
    assert (ctrl.objective, ctrl.encoder_steps, ctrl.eps_sq) == (objective, inner, 0.5)
    assert (ctrl.gammas, ctrl.consistency) == ((1.0, 1.0, 1.0), 0.0)
    assert ctrl.dither == (1 / 128 if name == "imagenet" else 0.0)
    assert (optimizer.name, optimizer.learning_rate) == ("adam", 1.5e-4)
    assert (optimizer.b1, optimizer.b2) == betas and optimizer.weight_decay is None
    assert (config.schedule.name, config.schedule.final) == ("linear", 0.0)
    assert (config.data.mean, config.data.std) == ((0.5,), (0.5,))
    sparse = systems.create(_config(CTRL[name]), total_steps=1, steps_per_epoch=1).module
    assert (sparse.encoder, sparse.steps, sparse.lmbda, sparse.mu) == ("csc", (2,), (0.1,), 0.0)
    assert sparse.stages()[-1].kernel == {"stl10": 3}.get(name, 4)


QUICK = [
    ("quickstart.py", "smoke"),
    (CTRL["mnist"], "encoder=csc,smoke"),
    (MCR2, "smoke"),
    ("cifar10.py", "model=vit,size=cpu,smoke"),
    (CRATE, "preset=paper,smoke"),
    (FINETUNE, "smoke"),
    (ALPHA, "smoke"),
    (ALPHA_FINETUNE, "variant=B/8,smoke"),
]
"""One of each file, and of each network."""

SLOW = [
    (file, f"{arg},smoke")
    for file, arg in EVERY
    if arg
    and (file, f"{arg},smoke") not in QUICK
    and ("variant=" not in arg or "ladder=" in arg)
]  # fmt: skip
"""Every other family; sizes share the smoke size."""


@pytest.mark.parametrize(
    "file, arg", [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_the_smoke_size_takes_two_steps(file, arg, tmp_path):
    result = run.train(_config(file, arg), tmp_path)
    assert (result.step, result.exit_code) == (2, 0)
    assert int(result.state.step) == 2 and int(result.state.bad_steps) == 0
    made = run.prepare(_config(file, arg))
    wanted = {f"eval/{name}" for name in made.system.evaluation_metrics}
    if made.config.system == "classify":
        wanted |= {"layers/coding_rate/1", "layers/nonzero/2"}
    assert wanted <= set(result.metrics)
    if made.config.evaluate.evaluators:
        found = json.loads((tmp_path / "evaluation.json").read_text())
        assert found.pop("step") == 2 and found.items() <= result.metrics.items()
        told = {name.split("/")[1] for name in found}
        assert told == set(made.config.evaluate.evaluators)
    assert all(math.isfinite(value) for value in result.metrics.values())
    logged = (tmp_path / "metrics.jsonl").read_text()
    assert logged.count("train/loss") == 2 and "null" not in logged


def test_every_file_has_a_smoke_size_among_the_quick_ones():
    quick = {file for file, _ in QUICK}
    assert quick | {file for file, _ in SLOW} == set(FILES)
    assert set(FILES) - quick <= {*CTRL.values(), SELF_SUPERVISED}  # one of each system is enough
    assert all(_config(file, arg).data.workers == 0 for file, arg in [*QUICK, *SLOW])
