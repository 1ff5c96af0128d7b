"""Plans that need no compiler, and what is done about those that do not fit."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from crate_jax.config import ConfigError
from crate_jax.plan import predict, report, search
from crate_jax.plan.compile import OutOfMemoryError
from crate_jax.plan.topology import parse
from tests.plan.test_estimate import make_config


def shown(plan):
    console = Console(file=io.StringIO(), width=report.WIDTH)
    report.show(plan, console)
    return console.file.getvalue()


def test_a_gpu_plan_is_a_formula_and_says_so():
    plan = predict.make(make_config("full", data=2, fsdp=4), parse("h100:8"), examples=6400)
    text = shown(plan)
    assert plan.fits and plan.compiled is None and "Nothing was compiled" in text
    assert all(len(line) <= report.WIDTH for line in text.splitlines())
    plain = json.loads(json.dumps(plan.as_dict()))
    assert plain["setting"]["mesh"] == {"slice": 1, "data": 2, "fsdp": 4, "tensor": 1}
    assert plain["known"]["total_steps"] == 10 and plain["compiler"] is None
    seconds, bounds = plain["predicted"]["step_seconds"], plain["predicted"]["roofline_seconds"]
    assert seconds == max(bounds["compute"], bounds["hbm"]) + bounds["exposed"]
    flops = plain["known"]["model_flops_per_step"]
    assert plain["predicted"]["mfu"] == pytest.approx(flops / (seconds * 8 * 989.4e12))
    assert plain["predicted"]["chip_hours"] == pytest.approx(10 * seconds * 8 / 3600)


def test_a_batch_that_does_not_divide_is_told():
    with pytest.raises(ConfigError, match="do not divide"):
        predict.make(make_config(batch=60), parse("h100:8"))


def test_what_does_not_fit_gets_changes_that_would():
    chip = parse("h100:8").chip
    config = make_config("none", batch=512)
    roomy = predict.make(config, parse("h100:8"))
    memory = dataclasses.replace(chip.memory, value=0.7 * roomy.needed)
    tight = dataclasses.replace(parse("h100:8"), chip=dataclasses.replace(chip, memory=memory))
    plan = predict.make(config, tight)
    assert not plan.fits and plan.advice
    text = shown(plan)
    assert "Does not fit (by formula" in text and "too much" in text
    for sentence in plan.advice:
        flag = sentence.split(":")[0].split(" ")[0].removeprefix("--config.").split("=")
        name, value = flag[0].split("."), flag[1]
        changed = {"remat": {"remat": value}}.get(name[1])
        if changed:
            model = {**config.model, **changed}
            assert predict.make(dataclasses.replace(config, model=model), tight).fits
    hopeless = dataclasses.replace(memory, value=1e3)
    tiny = dataclasses.replace(tight, chip=dataclasses.replace(chip, memory=hopeless))
    assert "No single change is enough" in predict.make(config, tiny).advice[0]


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (42.00G) exceeds available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 42.00G of 15.75G hbm. "
        "Exceeded hbm capacity by 26.25G.",
    ],
)
def test_the_compilers_refusal_is_read(message):
    error = OutOfMemoryError(message)
    assert error.needed == 42 * 2**30 and error.available == 15.75 * 2**30


def test_a_search_prunes_ranks_and_outlives_a_failing_candidate(monkeypatch):
    config, said = make_config("full", batch=64), []
    make = predict.make

    def fails_once(candidate, *args):
        if candidate.model["remat"] == "dots":
            raise RuntimeError("no such luck")
        return make(candidate, *args)

    monkeypatch.setattr(predict, "make", fails_once)
    plans, failures = search.search(
        config, parse("h100:8"), examples=6400, batches=[64], max_compiles=12, say=said.append
    )
    assert len(plans) + len(failures) == 12 and failures
    assert all("no such luck" in failure for failure in failures)
    times = [p.step_seconds for p in plans]
    assert times == sorted(times) and len(said) == 13
    assert any(p.config.mesh == config.mesh for p in plans)  # the config as it is
    console = Console(file=io.StringIO(), width=report.WIDTH)
    report.ranking(plans, failures, console)
    assert all(len(line) <= report.WIDTH for line in console.file.getvalue().splitlines())


def test_the_recipes_batch_is_compiled_first_and_each_setting_in_few_meshes():
    config = make_config()
    found = [
        search.Estimate(candidate, 1.0, candidate.train.batch_size * (1 + 0.1 * i))
        for i, candidate in enumerate(search.candidates(config, parse("h100:8"), batches=[32, 64]))
    ]
    chosen = search.prune(found, 64, 12)
    assert all(e.config.train.batch_size == 64 for e in chosen)
    kinds = [(e.config.model["remat"], e.config.model["attention_implementation"]) for e in chosen]
    assert max(kinds.count(kind) for kind in kinds) <= search.MESHES_EACH
