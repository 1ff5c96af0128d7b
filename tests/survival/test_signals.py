"""Signals in every phase, kills at any moment: the run that goes on is the same run."""

import json
import random
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from crate_jax.train import checkpoint
from tests.survival import runs

pytestmark = pytest.mark.slow
INTERVAL = 2  # steps between checkpoints
LONGER = 300  # steps, more than twenty lives of a few steps each get through
PHASES = ("compiling", "stepping", "evaluating", "saving")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    runs.run(workdir)
    return workdir


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_in_any_phase_saves_and_asks_to_be_resumed(phase, whole, tmp_path):
    workdir = tmp_path / "run"
    code, output = runs.hit(workdir, phase, signal.SIGTERM)
    assert code == 75, output
    assert "saved" in output and runs.whole_checkpoints(workdir)
    runs.run(workdir)
    runs.assert_same_run(workdir, whole)


def test_a_second_sigterm_during_a_save_changes_nothing(whole, tmp_path):
    workdir = tmp_path / "run"
    code, output = runs.hit(workdir, "saving", signal.SIGTERM, signal.SIGTERM)
    assert code == 75 and runs.whole_checkpoints(workdir), output
    runs.run(workdir)
    runs.assert_same_run(workdir, whole)


def test_sigkill_at_twenty_random_points_loses_nothing_but_time(tmp_path):
    """Every kill meets a run that is not done: one in three a start, else a step or save."""
    longer = f"--config.train.steps={LONGER}"
    whole, workdir, draw = tmp_path / "whole", tmp_path / "run", random.Random(0)
    runs.run(whole, longer)
    for kill in range(20):
        further = runs.last_step(workdir) + draw.randint(1, 5)
        process = runs.Process(workdir, longer)
        if kill % 3 == 0:
            time.sleep(draw.uniform(0.1, 5.0))  # imports, restore, compilation
        else:
            while runs.last_step(workdir) < further and not process.ended():
                time.sleep(0.005)
            time.sleep(draw.uniform(0.0, 0.1))
        process.send(signal.SIGKILL)
        code, output = process.finish()
        assert code == -signal.SIGKILL and runs.last_step(workdir) < LONGER, output
    runs.run(workdir, longer)
    runs.assert_same_run(workdir, whole, LONGER)


def test_a_nan_in_the_data_is_counted_and_never_reaches_the_parameters(tmp_path):
    """One record in 1,438 is nan: its step is skipped, the run ends well."""
    workdir = tmp_path / "run"
    marker = tmp_path / "records"
    marker.mkdir()
    runs.run(workdir, hands=[f"records:{marker}"])
    seen = [json.loads(line) for line in (marker / "0.jsonl").read_text().splitlines()]
    bad_step, record = seen[6]["step"], seen[6]["records"][3]
    workdir = tmp_path / "poisoned"
    runs.run(workdir, hands=[f"poison:{record}"])
    rows = [json.loads(line) for line in runs.metrics(workdir).splitlines()]
    total = {r["step"]: r["train/bad_total"] for r in rows if "train/bad_total" in r}
    assert total[bad_step - 1] == 0 and total[bad_step] == total[runs.STEPS] == 1
    params, _ = checkpoint.restore_params(workdir)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_steps_that_are_bad_in_a_row_stop_the_run_and_name_their_records(tmp_path):
    workdir = tmp_path / "run"
    code, output = runs.Process(
        workdir, "--config.optimizer.learning_rate=1e38", "--config.train.max_bad_steps=3"
    ).finish()
    assert code == 1 and "3 steps in a row" in output, output
    named = json.loads((workdir / "nonfinite.json").read_text())
    assert len(named) in (3, 4) and all(len(row["records"]) == 16 for row in named)


def test_debug_nans_names_the_operation_and_keeps_what_it_was_given(tmp_path):
    marker, workdir = tmp_path / "records", tmp_path / "run"
    marker.mkdir()
    code, output = runs.Process(
        workdir, "--config.debug_nans=True", hands=["poison:7", f"records:{marker}"]
    ).finish()
    if code == 0:  # record 7 is in none of these steps: poison one that is
        first = json.loads((marker / "0.jsonl").read_text().splitlines()[0])
        workdir = tmp_path / "again"
        code, output = runs.Process(
            workdir, "--config.debug_nans=True", hands=[f"poison:{first['records'][0]}"]
        ).finish()
    assert code == 1 and "is not finite: invalid value (nan) encountered in" in output, output
    (file,) = (workdir / "failing_step").iterdir()
    kept = np.load(file)
    assert np.isnan(kept["batch/image"]).any() and "state/step" in kept
    assert np.isfinite(kept["state/params/head/kernel"]).all()


def test_a_directory_that_vanishes_surfaces_within_an_interval(whole, tmp_path):
    """A file where checkpoints should go, as an unmounted disk leaves nothing to write to."""
    workdir = tmp_path / "run"
    marker = tmp_path / "marker"
    process = runs.Process(workdir, hands=[f"stepping:{marker}"])
    runs.wait_for(marker.exists, process)
    directory = workdir / "checkpoints"
    directory.rename(workdir / "elsewhere")
    directory.write_text("")
    since = runs.last_step(workdir)
    code, output = process.finish()
    assert code == 1 and "a checkpoint could not be written" in output, output
    assert runs.last_step(workdir) <= since + 2 * INTERVAL
    directory.unlink()
    (workdir / "elsewhere").rename(directory)
    runs.run(workdir)
    runs.assert_same_run(workdir, whole)


def test_a_disk_that_turns_read_only_surfaces_within_an_interval(tmp_path):
    """A mount of the checkpoints' own, in a namespace of the run's own."""
    own_mounts = ("unshare", "--mount", "bash", "-c")
    try:
        subprocess.run([*own_mounts, f"mount --bind {tmp_path} {tmp_path}"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting takes rights that this user does not have")
    workdir, turned = tmp_path / "run", tmp_path / "turned"
    where = workdir / "checkpoints"
    turn = (
        f"(until [ -d {where}/4 ]; do sleep 0.02; done; mount --bind {where} {where} "
        f'&& mount -o remount,bind,ro {where} && touch {turned}) & exec "$@"'
    )
    longer = f"--config.train.steps={LONGER}"
    process = runs.Process(workdir, longer, prefix=(*own_mounts, turn, "-"))
    runs.wait_for(turned.exists, process)
    since = runs.last_step(workdir)
    code, output = process.finish()
    assert code == 1 and "a checkpoint could not be written" in output, output
    assert "Read-only file system" in output, output
    assert runs.last_step(workdir) <= since + 2 * INTERVAL
    assert runs.whole_checkpoints(workdir)
    runs.run(workdir, longer)
    runs.run(tmp_path / "whole", longer)
    runs.assert_same_run(workdir, tmp_path / "whole", LONGER)


def test_a_profile_is_written_where_asked_for(tmp_path):
    runs.run(tmp_path / "run", "--config.profile=True")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
