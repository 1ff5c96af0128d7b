"""Checkpoints: the same bits back, on any mesh, or a sentence about why not."""

import errno
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from crate_jax import optim
from crate_jax.config import MeshConfig, resolve
from crate_jax.sharding.mesh import create_mesh
from crate_jax.systems.classify import Classify
from crate_jax.train import checkpoint, reading
from crate_jax.train.checkpoint import Checkpoints, WriteError
from crate_jax.train.loop import abstract_state
from crate_jax.train.reading import CheckpointError, DamagedError, ReadError, UnreachableError

META = {"model": {"name": "crate", "width": 16}, "digest": "abc"}
BATCH = {
    "image": jax.ShapeDtypeStruct((8, 8, 8, 1), "float32"),
    "label": jax.ShapeDtypeStruct((8,), "int32"),
}


def _system(optimizer="sgd", model=None, **train):
    raw = {
        "model": {"name": "crate", "width": 16, "depth": 2, "heads": 2, "patch": 4}
        | {"scan_layers": True} | (model or {}),
        "optimizer": {"name": optimizer}, "train": {"steps": 9, "batch_size": 8} | train,
    }  # fmt: skip
    return Classify(resolve(raw), total_steps=9, steps_per_epoch=9)


def _like(system, mesh=None):
    return abstract_state(system, mesh or create_mesh(MeshConfig(data=8)), BATCH)


def _random(like, seed=0):
    """Arrays like those, no two alike, none of them 0."""
    rng = np.random.default_rng(seed)

    def draw(x):
        values = rng.integers(1, 100, x.shape) if x.dtype.kind == "i" else rng.normal(size=x.shape)
        return jax.device_put(jnp.asarray(values, x.dtype), x.sharding)

    return jax.tree.map(draw, like)


def _assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def _small(step):
    """A state that is quick to write."""
    return {"step": jnp.int32(step), "params": {"w": jnp.full(3, float(step))}, "ema": None}


def _shapes(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _read(directory, step, like):
    """The state of one checkpoint."""
    return reading.read_state(directory / "checkpoints" / str(step), like)[0]


def _chosen(directory, which):
    return int(checkpoint.choose(directory, which).name)


def _fill(directory, steps, scores=None, **kwargs):
    with Checkpoints(directory, **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, _small(step), META)
            if scores:
                checkpoints.score(step, scores[step])
        checkpoints.wait()
        return checkpoints.steps()


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_the_state_of_every_optimizer_comes_back_bit_for_bit(name, tmp_path):
    ema = 0.0 if name.startswith("schedule_free") else 0.9
    like = _like(_system(name, ema_decay=ema))
    state = _random(like)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, META)
        checkpoints.wait()
    with Checkpoints(tmp_path) as checkpoints:
        again = _read(tmp_path, checkpoints.newest(), like)
        assert checkpoints.restore_newest(like)[2] == META
    _assert_identical(again, state)
    assert jax.tree.map(lambda x: x.sharding, again) == jax.tree.map(lambda x: x.sharding, like)


def test_low_precision_moments_come_back_as_they_were(tmp_path):
    raw = {
        "model": {"name": "vit", "width": 16, "depth": 1, "heads": 2, "patch": 4},
        "optimizer": {"name": "adamw", "mu_dtype": "bfloat16"}, "train": {"steps": 9},
    }  # fmt: skip
    like = _like(Classify(resolve(raw), total_steps=9, steps_per_epoch=9))
    assert jnp.dtype("bfloat16") in {x.dtype for x in jax.tree.leaves(like)}
    state = _random(like)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, META)
        checkpoints.wait()
        _assert_identical(_read(tmp_path, 1, like), state)


def test_a_checkpoint_is_read_onto_another_mesh(tmp_path):
    system = _system("adamw")
    state = _random(_like(system, create_mesh(MeshConfig(data=1, fsdp=8))))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, META)
        checkpoints.wait()
        for sizes in ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}):
            like = _like(system, create_mesh(MeshConfig(**sizes)))
            again = _read(tmp_path, 1, like)
            _assert_identical(again, state)
            kernel = again.params["head"]["kernel"]
            assert kernel.sharding == like.params["head"]["kernel"].sharding
            assert kernel.sharding != state.params["head"]["kernel"].sharding
        alone = _like(system, create_mesh(MeshConfig(), jax.devices()[:1]))
        _assert_identical(_read(tmp_path, 1, alone), state)


def test_the_newest_are_kept(tmp_path):
    assert _fill(tmp_path, [1, 2, 3, 4, 5], keep_last=2, keep_best=0) == [4, 5]


def test_the_best_are_kept_besides_by_scores_that_come_after_saving(tmp_path):
    scores = {1: 0.3, 2: 0.9, 3: 0.1, 4: 0.8, 5: 0.2, 6: 0.4}
    steps = _fill(tmp_path, scores, scores, keep_last=1, keep_best=2)
    assert steps == [2, 4, 6]
    with Checkpoints(tmp_path, keep_last=1, keep_best=2) as checkpoints:
        assert _chosen(tmp_path, "best") == 2
        checkpoints.save(7, _small(7), META)
        checkpoints.score(7, 0.95)  # the resumed run remembers the scores of the first
        checkpoints.save(8, _small(8), META)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 7, 8]
        assert _chosen(tmp_path, "best") == 7


def test_a_score_without_a_checkpoint_is_forgotten(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _small(1), META)
        checkpoints.score(2, 0.9)
        checkpoints.score(1, 0.5)
        checkpoints.wait()
        assert _chosen(tmp_path, "best") == 1
    assert json.loads((tmp_path / "checkpoints" / "scores.json").read_text()) == {"1": 0.5}


def test_a_checkpoint_is_found_by_latest_best_or_number(tmp_path):
    _fill(tmp_path, [1, 2, 3], {1: 0.9, 2: 0.1, 3: 0.2}, keep_last=3)
    assert [_chosen(tmp_path, w) for w in ("latest", "best", "2")] == [3, 1, 2]
    for which in ("7", "newest", "-1"):
        with pytest.raises(CheckpointError, match=f"{which!r}; .* one of: 1, 2, 3"):
            checkpoint.choose(tmp_path, which)


def test_nothing_scored_has_no_best_and_nothing_saved_no_latest(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="holds no checkpoints"):
            checkpoint.choose(tmp_path, "latest")
        assert checkpoints.newest() is None
    _fill(tmp_path, [1])
    with pytest.raises(CheckpointError, match="no checkpoint 'best'"):
        checkpoint.choose(tmp_path, "best")


def test_a_directory_without_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoints; give the workdir of a run"):
        checkpoint.restore_params(tmp_path)
    assert not checkpoint.exists(tmp_path) and not list(tmp_path.iterdir())


def test_another_architecture_is_refused_by_the_leaves_that_differ(tmp_path):
    saved = _small(1) | {"params": {"w": jnp.zeros(3), "old": jnp.zeros(2), "half": jnp.zeros(2)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved, META)
        checkpoints.wait()
        wanted = {"w": jnp.zeros(4), "new": jnp.zeros(5), "half": jnp.zeros(2, jnp.bfloat16)}
        with pytest.raises(CheckpointError) as error:
            _read(tmp_path, 1, saved | {"params": wanted})
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert lines[1:-1] == [
        "params/half: float32[2] in the checkpoint, bfloat16[2] wanted",
        "params/new: none in the checkpoint, float32[5] wanted",
        "params/old: float32[2] in the checkpoint, none wanted",
        "params/w: float32[3] in the checkpoint, float32[4] wanted",
    ]


@pytest.mark.parametrize(
    "other, path",
    [
        ({"model": {"width": 24}}, "params/head/kernel: float32[16, 10] in the checkpoint"),
        ({"model": {"depth": 3}}, "params/blocks/ista/D: float32[2, 16, 16] in the checkpoint"),
        ({"optimizer": "adamw"}, "none in the checkpoint"),
        ({"ema_decay": 0.9}, "ema/head/bias: none in the checkpoint"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(other, path, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _random(_like(_system())), META)
        checkpoints.wait()
        like = _like(_system(**other))
        with pytest.raises(CheckpointError, match="another model or optimizer") as error:
            _read(tmp_path, 1, like)
    text = str(error.value)
    assert path in text or "more" in text
    assert "config.train.init_from" in text and len(text.splitlines()) <= 23


@pytest.mark.parametrize(
    "optimizer, ema", [("adamw", 0.9), ("adamw", 0.0), ("schedule_free_sgd", 0.0)]
)
def test_the_judged_parameters_are_the_average_where_there_is_one(optimizer, ema, tmp_path):
    system = _system(optimizer, ema_decay=ema)
    state = _random(_like(system))
    judged = system.eval_params(state)
    with Checkpoints(tmp_path) as checkpoints:
        averaged = optimizer != "adamw"
        checkpoints.save(1, state, META, judged=judged if averaged else None)
        checkpoints.wait()
    params, model = checkpoint.restore_params(tmp_path)
    want = {"adamw": state.ema if ema else state.params}.get(optimizer, judged)
    _assert_identical(params, jax.tree.map(np.asarray, want))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
    assert model == META["model"]
    if ema or averaged:
        assert not np.array_equal(params["head"]["kernel"], state.params["head"]["kernel"])


def test_parameters_alone_make_a_checkpoint(tmp_path):
    params = {"a": {"kernel": np.arange(6.0).reshape(2, 3)}, "b": np.float32([1.5])}
    checkpoint.save_params(tmp_path, params, {"name": "crate", "eta": 0.1})
    again, model = checkpoint.restore_params(tmp_path)
    _assert_identical(again, params)
    assert model == {"name": "crate", "eta": 0.1}


def test_what_a_killed_save_left_behind_is_no_checkpoint(tmp_path):
    _fill(tmp_path, [1, 2], keep_last=9)
    half = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp-17"
    half.mkdir()
    (half / "state").write_text("half")
    assert _chosen(tmp_path, "latest") == 2
    assert half.exists()  # a reader beside a run that is saving cleans nothing up
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest() == 2
        checkpoints.save(3, _small(3), META)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    assert not half.exists()


def test_reading_changes_no_file(tmp_path):
    _fill(tmp_path, [1, 2, 3], keep_last=3)

    def files():
        return {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}

    before = files()
    checkpoint.restore_params(tmp_path, "1")
    assert files() == before


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _small(1), META)
        checkpoints.save(1, _small(99), META)
        checkpoints.wait()
        checkpoints.save(1, _small(99), META)
        checkpoints.wait()
        assert checkpoints.steps() == [1]
    params, _ = checkpoint.restore_params(tmp_path)
    np.testing.assert_array_equal(params["w"], np.full(3, 1.0))


@pytest.mark.parametrize("when", ["save", "wait_until_finished", "check_for_errors"])
def test_a_failure_to_write_says_what_is_whole(when, tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, _small(4), META)
        checkpoints.wait()

        def full(*_, **__):
            raise ValueError("RESOURCE_EXHAUSTED: no space left on device\nmore")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, when, full)
            act = {
                "save": lambda: checkpoints.save(5, _small(5), META),
                "wait_until_finished": checkpoints.wait,
                "check_for_errors": checkpoints.check,
            }[when]
            with pytest.raises(WriteError) as error:
                act()
    text = re.sub(r"\s+", " ", str(error.value))
    assert "no space left on device" in text and "more" not in text
    assert "Whole checkpoints: 4." in text and "run the same command again" in text


def test_a_state_is_copied_before_its_buffers_are_reused(tmp_path):
    """The loop donates the state to the next step while the writer is still at it."""
    like = _like(_system("adamw"))
    state = _random(like)
    want = jax.tree.map(np.array, state)
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, META)
        spoil(state)
        checkpoints.wait()
        _assert_identical(jax.tree.map(np.asarray, _read(tmp_path, 1, like)), want)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_read(tmp_path):
    with Checkpoints(tmp_path, keep_last=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, _small(step), META)
    for path in (tmp_path / "checkpoints" / "3" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:7])
    (tmp_path / "checkpoints" / "4").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        step, state, _ = checkpoints.restore_newest(_shapes(_small(0)))
        assert step == 2
        jax.tree.map(np.testing.assert_array_equal, state, _small(2))
        checkpoints.save(3, _small(3), META)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {"3.damaged", "4.damaged"} <= names


def _saved(tmp_path, steps=(1, 2)):
    """Checkpoints of a real state, the newest of which a test then damages; its files."""
    like = _like(_system("adamw"))
    states = {step: _random(like, seed=step) for step in steps}
    with Checkpoints(tmp_path, keep_last=9) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, META)
    newest = tmp_path / "checkpoints" / str(max(steps))
    files = sorted(p for p in (newest / "state").rglob("*") if p.is_file())
    return like, states, newest, files


def _restored(tmp_path, like):
    told = []
    with Checkpoints(tmp_path, keep_last=9, report=told.append) as checkpoints:
        step, state, _ = checkpoints.restore_newest(like)
    return step, state, told


@pytest.mark.parametrize("place", range(6))
def test_a_flipped_bit_is_found_or_does_no_harm(place, tmp_path):
    like, states, _, files = _saved(tmp_path)
    draw = np.random.default_rng(place)
    largest = max(files, key=lambda path: path.stat().st_size)
    path = largest if place < 4 else files[draw.integers(len(files))]
    content = bytearray(path.read_bytes())
    content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    path.write_bytes(bytes(content))
    step, state, told = _restored(tmp_path, like)
    _assert_identical(state, states[step])
    assert step == 2 or (len(told) == 1 and "damaged" in told[0])


def test_a_changed_value_is_named_by_its_leaf(tmp_path):
    like, states, newest, _ = _saved(tmp_path)
    kernel = states[2].params["head"]["kernel"]
    states[2].params["head"]["kernel"] = kernel.at[0, 0].add(1e-7)
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(newest / "state", states[2], force=True)
    with pytest.raises(DamagedError, match="other bits than were saved: params/head/kernel$"):
        _read(tmp_path, 2, like)
    with pytest.raises(DamagedError, match="params/head/kernel"):
        checkpoint.restore_params(tmp_path, "2")
    step, state, told = _restored(tmp_path, like)
    assert step == 1 and "params/head/kernel" in told[0]
    _assert_identical(state, states[1])


@pytest.mark.parametrize(
    "what", ["truncated", "files missing", "item missing", "no fingerprints", "meta", "no meta"]
)
def test_what_is_not_whole_gives_way_to_the_one_before(what, tmp_path):
    like, states, newest, files = _saved(tmp_path)
    if what == "truncated":
        largest = max(files, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif what == "files missing":
        for path in files:
            if path.parent == newest / "state" / "d":  # where the arrays are
                path.unlink()
    elif what == "meta":
        (newest / "meta" / "metadata").write_text(json.dumps(META | {"digest": "abd"}))
    elif what == "no meta":
        (newest / "meta" / "metadata").write_text("")
    else:
        shutil.rmtree(newest / ("state" if what == "item missing" else "fingerprints"))
    step, state, told = _restored(tmp_path, like)
    assert step == 1 and "checkpoints/2 is damaged and set aside" in told[0]
    _assert_identical(state, states[1])
    if what in ("meta", "no meta"):
        assert "meta" in told[0].partition("aside: ")[2]
    if what in ("truncated", "files missing"):
        assert "params/" in told[0] or "opt_state/" in told[0] or "step" in told[0]
    assert (newest.parent / "2.damaged").is_dir()


@pytest.mark.parametrize("steps", [(2,), (2, 4)])
def test_where_all_are_empty_nothing_starts_over(steps, tmp_path):
    for step in steps:
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    assert checkpoint.exists(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint .* can be read:\n  2: it is empty"):
        Checkpoints(tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {str(step) for step in steps}


def test_a_step_that_is_damaged_twice_is_set_aside_twice(tmp_path):
    for told in ("2.damaged", "2.damaged.1"):
        like, states, newest, _ = _saved(tmp_path)
        shutil.rmtree(newest / "fingerprints")
        step, state, _ = _restored(tmp_path, like)
        assert step == 1 and (newest.parent / told).is_dir()
        _assert_identical(state, states[1])


@pytest.mark.parametrize(
    "error, kind",
    [
        (PermissionError(errno.EACCES, "Permission denied"), ReadError),
        (ValueError("PERMISSION_DENIED: Error opening file"), ReadError),
        (MemoryError(), ReadError),
        (OSError(errno.ESTALE, "Stale file handle"), UnreachableError),
        (ValueError("Transport endpoint is not connected"), UnreachableError),
    ],
    ids=["rights", "rights by TensorStore", "memory", "stale", "bucket gone"],
)
def test_what_is_in_the_way_of_reading_is_no_damage(error, kind, tmp_path, monkeypatch):
    like, states, newest, _ = _saved(tmp_path)
    monkeypatch.setattr(reading, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(reading, "_PATIENCE_SECONDS", 0.2)
    read, tries = ocp.PyTreeCheckpointHandler.restore, []

    def hindered(times):
        def restore(self, *args, **kwargs):
            tries.append(1)
            if len(tries) <= times:
                raise error
            return read(self, *args, **kwargs)

        monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", restore)
        tries.clear()

    if kind is UnreachableError:  # and there again at the second try
        hindered(times=1)
        step, state, told = _restored(tmp_path, like)
        assert step == 2 and told == []
        _assert_identical(state, states[2])
    for restore in (lambda: _restored(tmp_path, like), lambda: checkpoint.restore_params(tmp_path)):
        hindered(times=99)
        with pytest.raises(kind, match="Nothing was changed. See to it, then run the same c"):
            restore()
    assert {p.name for p in newest.parent.iterdir()} == {"1", "2"}


def test_damaged_parameters_are_told_with_their_place(tmp_path):
    _, _, newest, files = _saved(tmp_path)
    for path in files:
        path.write_bytes(b"")
    with pytest.raises(DamagedError, match=rf"the checkpoint {newest} is damaged: .*cannot be re"):
        checkpoint.restore_params(tmp_path)


def test_a_checkpoint_that_its_run_removes_while_it_is_read_is_not_damaged(tmp_path):
    _fill(tmp_path, [1])
    path = checkpoint.choose(tmp_path)
    shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="checkpoints/1 went while it was read.*keep_last"):
        reading.read_params(path)


def test_another_model_is_no_damage(tmp_path):
    _saved(tmp_path)
    other = _like(_system("adamw", {"width": 32}))
    with pytest.raises(CheckpointError, match="another model or optimizer"):
        _restored(tmp_path, other)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


def test_when_none_can_be_read_nothing_starts_over(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _small(1), META)
    for path in (tmp_path / "checkpoints" / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with Checkpoints(tmp_path) as checkpoints:
        for _ in range(2):
            with pytest.raises(CheckpointError, match="no checkpoint .* can be read"):
                checkpoints.restore_newest(_shapes(_small(0)))
        assert checkpoints.steps() == [1]


def test_a_score_that_is_no_number_keeps_nothing(tmp_path):
    with Checkpoints(tmp_path, keep_last=1, keep_best=1) as checkpoints:
        for step, score in ((1, 0.5), (2, float("nan")), (3, 0.1), (4, 0.2)):
            checkpoints.save(step, _small(step), META)
            checkpoints.score(step, score)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 4] and _chosen(tmp_path, "best") == 1
