import json

import numpy as np

from crate_jax.interpret import compare


def _workdir(root, name, accuracy):
    workdir = root / name
    workdir.mkdir()
    config = {"model": {"name": "crate"}, "optimizer": {"name": name, "learning_rate": 1e-3}}
    (workdir / "config.json").write_text(json.dumps({"config": config}))
    early = {"step": 1, "eval/accuracy": 0.1}
    curves = ("coding_rate", "coding_rate_std", "nonzero", "nonzero_std")
    layers = {f"layers/{curve}/{l}": 10.0 / l for curve in curves for l in range(1, 12)}
    lines = [early, {"step": 2, "eval/accuracy": accuracy, **layers}, {"step": 3, "train/loss": 1}]
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    timing = {"step": 3, "timing/images_per_second": 1234.0}
    (workdir / "timing.jsonl").write_text(json.dumps(timing))
    return workdir


def test_runs_become_rows_and_one_figure(tmp_path, capsys):
    workdirs = [_workdir(tmp_path, "adamw", 0.5), _workdir(tmp_path, "sgd", 0.25)]
    assert compare.main([*map(str, workdirs), "--figure", str(tmp_path / "layers.png")]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert rows[2][:7] == ["adamw", "crate", "adamw", "0.001", "2", "50.00 %", "1,234"]
    assert rows[3][5] == "25.00 %"
    assert (tmp_path / "layers.png").stat().st_size > 10_000


def test_layers_are_in_order_of_depth_not_of_their_names():
    row = {f"layers/nonzero/{l}": float(l) for l in range(12, 0, -1)}
    np.testing.assert_array_equal(compare.read_layers(row)["nonzero"], np.arange(1.0, 13.0))


def test_a_directory_that_is_no_run(tmp_path, capsys):
    assert compare.main([str(tmp_path)]) == 2
    assert "a run's workdir?" in capsys.readouterr().err
