import pytest
from flax import linen as nn

from crate_jax import models
from crate_jax.config import ConfigError

SIZES = {"width": 8, "depth": 2, "heads": 2}


@pytest.mark.parametrize("name", models.MODELS)
def test_every_row_of_every_size_table_is_a_model(name):
    _, variants = models.MODELS[name]
    for variant, sizes in variants.items():
        model = models.create(name, variant=f"{variant}/8", num_classes=5)
        assert isinstance(model, nn.Module) and (model.patch, model.num_classes) == (8, 5)
        assert {key: getattr(model, key) for key in sizes} == sizes


def test_overrides_win_over_the_variant():
    model = models.create("crate", variant="B/16", depth=2, patch=8)
    assert (model.width, model.depth, model.patch) == (768, 2, 8)
    assert models.create("crate", variant="T").patch == 16


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (("crate_alfa", {}), "no model 'crate_alfa'; did you mean 'crate_alpha'?"),
        (("transformer", {}), "Valid: crate, crate_alpha, "),
        (("crate", SIZES | {"lamda": 1}), "no setting 'lamda'; did you mean 'lmbda'?"),
        (("vit", SIZES | {"eta": 1}), "model 'vit' has no setting 'eta'"),
        (("crate", {"variant": "XB"}), "no variant 'XB'; did you mean 'B'? Valid: B, L, S, T"),
        (("crate_alpha", {"variant": "Tiny/16"}), "did you mean 'Ti'?"),
        (("crate", {"variant": "B/p16"}), "Write 'B', or 'B/16'"),
        (("crate", {"variant": "B/0"}), "patch must be a positive integer; got 0"),
        (("crate", {}), "needs width: give variant= (one of T, S, B, L)"),
        (("crate", SIZES | {"heads": 3}), "width=8 does not divide over heads=3"),
        (("crate", SIZES | {"depth": 2.0}), "depth must be a positive integer; got 2.0"),
        (("crate", SIZES | {"depth": True}), "depth must be a positive integer; got True"),
        (("crate", SIZES | {"heads": 0}), "heads must be a positive integer; got 0"),
        (("crate", SIZES | {"ista_steps": 0}), "ista_steps must be a positive integer; got 0"),
        (("crate_alpha", SIZES | {"expansion": 1.5}), "expansion must be a positive integer"),
        (("vit", SIZES | {"drop_path": 1.0}), "drop_path must be at least 0 and below 1; got 1.0"),
        (("crate", SIZES | {"drop_path": float("nan")}), "drop_path must be at least 0"),
        (("crate_alpha", SIZES | {"dropout": -0.1}), "dropout must be at least 0 and below 1"),
        (("vit", {"width": 6, "depth": 1, "heads": 2, "positions": "sincos2d"}),
         "positions='sincos2d' needs a width divisible by 4; got width=6"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_said_with_what_would_be_right(call, sentence):
    name, settings = call
    with pytest.raises(ConfigError) as error:
        models.create(name, **settings)
    assert sentence in str(error.value)


def test_heads_that_do_not_divide_the_width_may_say_their_size():
    assert models.create("crate", **SIZES | {"heads": 3, "head_dim": 5}).head_dim == 5


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("attention", "msa", "mssa"),
        ("attention_implementation", "einsums", "einsum"),
        ("dtype", "bf16", "bfloat16"),
        ("dtype", "int8", None),
        ("feedforward", "istas", "ista"),
        ("out_map", "free+bais", "free+bias"),
        ("param_dtype", "float", "float16"),
        ("patching", "convolution", "conv"),
        ("pool", "average", "mean"),
        ("position_resampling", "bicubic", "torch_bicubic"),
        ("positions", "sincos", "sincos2d"),
        ("prox", "softs", "soft"),
        ("remat", "dots_nobatch", "dots_no_batch"),
        ("residual_from", "row", "raw"),
    ],
)
def test_words_of_a_few_are_checked(field, wrong, right):
    with pytest.raises(ConfigError) as error:
        models.create("crate", **SIZES, **{field: wrong})
    assert f"{field}={wrong!r}" in str(error.value)
    assert all(str(word) in str(error.value) for word in models.CHOICES[field])
    assert getattr(models.create("crate", **SIZES, **{field: right}), field) == right


def test_every_choice_of_words_belongs_to_a_field_and_holds_its_default():
    known = [models.fields(name) for name in (*models.MODELS, *models.NETS)]
    for field, words in models.CHOICES.items():
        defaults = {fields[field].default for fields in known if field in fields}
        assert defaults and defaults <= set(words)


@pytest.mark.parametrize("name", models.NETS)
def test_every_row_of_a_net_is_a_module_with_settings_for_the_command_line(name):
    for variant, sizes in models.NETS[name][1].items():
        net = models.create(name, variant=variant)
        assert {key: getattr(net, key) for key in sizes} == sizes
        settings = models.settings(name, variant=variant)
        assert set(settings) == {"name", "variant", *models.fields(name)}
        settings.update(sizes)  # placeholders take their types, lists among them
        assert models.create(**{k: v for k, v in settings.items() if v is not None}) == net


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (("resnet", {}), "model 'resnet' needs depths: give it, or variant= (one of 18, 34"),
        (("resnet", {"variant": "50"}), "model 'resnet' has no variant '50'"),
        (("resnet", {"variant": "18/4"}), "no variant '18/4'"),
        (("resnet", {"variant": "18", "heads": 2}), "no setting 'heads'; did you mean 'head'?"),
        (("resnet", {"variant": "18", "feature_dim": 0}), "feature_dim must be a positive integer"),
        (("resnet", {"variant": "18", "head": 3}), "model setting head must be bool; got 3"),
        (("resnet", {"depths": (1, 1)}), "depths must be four positive integers; got (1, 1)"),
        (("resnet", {"variant": "18", "depths": (1, 1, 0, 1)}), "depths must be four positive"),
        (("mlp", {"variant": "mnist", "dtype": "bf16"}), "dtype='bf16'"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_net_is_said(call, sentence):
    name, settings = call
    with pytest.raises(ConfigError) as error:
        models.create(name, **settings)
    assert sentence in str(error.value)


@pytest.mark.parametrize("name", models.MODELS)
def test_settings_open_every_field_to_the_command_line(name):
    settings = (
        models.settings(name, variant="B/16", eta=0.2) if name != "vit" else models.settings(name)
    )
    assert set(settings) == {"name", "variant", *models.fields(name)}
    assert settings.width is None and settings.num_classes is None
    settings.width = 32  # a placeholder takes its type
    with pytest.raises(TypeError):
        settings.width = "wide"
    if name != "vit":
        assert settings.eta == 0.2 and settings.patch is None


@pytest.mark.parametrize(
    "name, overrides",
    [
        ("crate", {"attention": "mhsa", "out_map": "tied"}),
        ("crate", {"feedforward": "mlp", "eta": 0.2}),
        ("crate_alpha", {"overcomplete": False, "expansion": 2}),
    ],
)
def test_a_setting_without_effect_is_refused(name, overrides):
    with pytest.raises(ConfigError, match="has no effect with"):
        models.create(name, variant="S", **overrides)
