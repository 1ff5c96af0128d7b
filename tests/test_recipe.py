import pytest

from crate_jax.config import ConfigError, default
from crate_jax.recipe import choose, parse_arg, shrink


def test_words_are_switches_and_values_keep_their_type():
    arg = parse_arg(
        "variant=L/14,depth=3,rate=1e-3,fast,smoke", variant="B", depth=2, rate=0.1, fast=False
    )
    assert (arg.variant, arg.depth, arg.rate, arg.fast, arg.smoke) == ("L/14", 3, 1e-3, True, True)
    assert parse_arg(None, variant="B").variant == "B"
    assert parse_arg("fast=false", fast=True).fast is False


@pytest.mark.parametrize(
    "arg, message",
    [
        ("varient=B", "did you mean 'variant'"),
        ("depth=two", "depth=.*int"),
        ("depth", "depth=.*int"),
    ],
)
def test_bad_arguments_get_a_sentence(arg, message):
    with pytest.raises(ConfigError, match=message):
        parse_arg(arg, variant="B", depth=1)


def test_choose_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        choose("preset", "papre", {"paper": 1, "repo": 2})


@pytest.mark.parametrize(
    "given, left", [((50, 0.0), (1, 0.0)), ((0, 5.0), (0, 0.0)), ((0, 0.0), (0, 0.0))]
)
def test_shrink_keeps_the_schedule_but_for_its_warm_up(given, left):
    config = default()
    config.model = {"name": "vit", "variant": "B/16", "patch": None}
    config.schedule.update(name="linear", final=0.1, warmup_steps=given[0], warmup_epochs=given[1])
    schedule = shrink(config).schedule
    assert (schedule.name, schedule.final) == ("linear", 0.1)
    assert (schedule.warmup_steps, schedule.warmup_epochs) == left
