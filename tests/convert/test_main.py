"""The command line: a file into a directory and back, and its sentences."""

import numpy as np
import pytest

from crate_jax.convert import __main__ as cli
from crate_jax.convert import files
from crate_jax.train import checkpoint
from tests.convert import official

SAID = ["--family", "crate", "--heads", "3", "--eta", "0.1", "--lmbda", "0.1"]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "c.npz"
    files.write(path, official.crate_torch(dtype=np.float32))
    return path


def _run(*words):
    return cli.main([str(word) for word in words])


def test_a_file_into_a_directory_and_back(tmp_path, source, capsys):
    directory, back = tmp_path / "run", tmp_path / "back.safetensors"
    assert _run(source, directory, *SAID, "--set", "pool=mean", "--set", "scan_layers=True") == 0
    told = capsys.readouterr().out
    count = sum(array.size for array in files.read(source).values())
    assert f"{count:,} in 20 arrays" in told and "as given" in told
    assert f"--workdir {directory} --mode=eval" in told and "--config.model.pool=mean" in told
    assert _run(directory, back) == 0
    state, got = files.read(source), files.read(back)
    assert set(got) == set(state)
    for name in state:
        np.testing.assert_array_equal(got[name], state[name])


def test_the_directory_says_every_setting(tmp_path, source):
    from crate_jax import models

    assert _run(source, tmp_path / "run", *SAID, "--set", "dtype=bfloat16") == 0
    params, model = checkpoint.restore_params(tmp_path / "run")
    assert set(model) == {"name", *models.fields("crate")}
    assert model["name"] == "crate" and model["eta"] == 0.1 and model["dtype"] == "bfloat16"
    np.testing.assert_array_equal(
        params["blocks_1"]["ista"]["D"], files.read(source)["transformer.layers.1.1.fn.weight"]
    )


def test_a_size_of_the_table_is_evaluated_by_its_config():
    from crate_jax import models

    module = models.create("crate", variant="S", scan_layers=True)
    command = cli._evaluation("crate", module, "runs/s")
    assert "--config configs/crate/imagenet1k.py:variant=S --workdir runs/s --mode=eval" in command
    module = models.create("crate_alpha", variant="L/14", head_norm_eps=1e-5)
    command = cli._evaluation("crate_alpha", module, "runs/l")
    assert "variant=L/14" in command and "--config.model.head_norm_eps=1e-05" in command


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--heads", "3"], "name the family"),
        (SAID[:4], "does not tell eta= and lmbda="),
        ([*SAID, "--set", "pool"], "write FIELD=VALUE"),
        ([*SAID, "--set", "pol=mean"], "did you mean 'pool'"),
        ([*SAID, "--layout", "torch"], "--layout is for writing a file"),
    ],
)
def test_wrong_words_are_told_in_a_sentence(tmp_path, source, capsys, words, sentence):
    assert _run(source, tmp_path / "run", *words) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(tmp_path, source, capsys):
    assert _run(source, tmp_path, *SAID) == 2
    assert "exists already" in capsys.readouterr().err
    assert _run(source, tmp_path / "d.npz", *SAID) == 2
    assert "DEST is then a new directory" in capsys.readouterr().err


def test_directories_that_do_not_fit(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert _run(tmp_path / "empty", tmp_path / "x.npz") == 2
    assert "holds no checkpoints" in capsys.readouterr().err
    assert _run(tmp_path / "empty", tmp_path / "x.npz", "--eta", "0.1") == 2
    assert "leave out --eta" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), checkpoint.WriteError("no space is left.")]
)
def test_a_write_that_fails_is_told_and_does_not_block_the_next(
    tmp_path, source, capsys, monkeypatch, error
):
    def half_written(directory, *_):
        (directory / "checkpoints").mkdir(parents=True)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_params", half_written)
        assert _run(source, tmp_path / "run", *SAID) == 1
    assert str(error) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert _run(source, tmp_path / "run", *SAID) == 0


def test_a_file_that_cannot_be_written_is_told(tmp_path, source, capsys):
    assert _run(source, tmp_path / "run", *SAID) == 0
    assert _run(tmp_path / "run", source / "back.npz") == 1
    assert "is not converted: " in capsys.readouterr().err
