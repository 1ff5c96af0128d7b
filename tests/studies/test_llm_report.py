"""Against the golden files of tests/convert/golden, and a model whose sinks were planted."""

import dataclasses
import io
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from rich.console import Console

from crate_jax import studies
from crate_jax.config import ConfigError, MeshConfig
from crate_jax.convert import files, huggingface
from crate_jax.convert.huggingface import Checkpoint
from crate_jax.convert.safetensors_map import SINGLE
from crate_jax.models.decoder import Architecture
from crate_jax.models.decoder_interventions import Interventions
from crate_jax.sharding import mesh as meshes
from crate_jax.sharding.place import batch_sharding
from crate_jax.studies.llm_report import (
    Settings,
    checkpoints,
    layers,
    memory,
    output,
    parts,
    passes,
    planted,
    run,
    summary,
)
from crate_jax.studies.llm_report.passes import Variant

GOLDEN = pathlib.Path(__file__).parents[1] / "convert" / "golden"


def make_mesh(count):
    """Over the first few of the simulated devices."""
    return meshes.create_mesh(MeshConfig(preset="fsdp"), jax.devices()[:count])


def measure(name, mesh, batch_size, **settings):
    golden = np.load(GOLDEN / name / "expected.npz")
    texts = passes.Texts(golden["tokens"], np.array([0, 1]), batch_size)
    options = {"dtype": np.dtype(np.float32), "legacy": False, "mesh": mesh} | settings
    return golden, texts, passes.measure(Checkpoint(GOLDEN / name), texts, **options)


@pytest.mark.parametrize("name, devices", [("llama3", 1), ("gpt2", 8), ("olmo2", 8)])
def test_statistics_are_those_of_the_reference(name, devices):
    golden, _, found = measure(name, make_mesh(devices), devices)
    A = golden["attention"]
    L, B, H, T, _ = A.shape
    np.testing.assert_allclose(found["loss"], golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["sink_score"], A[..., 1:, 0].mean(-1), rtol=2e-5)

    entropy = -np.where(A > 0, A * np.log(np.where(A > 0, A, 1)), 0).sum(-1)
    np.testing.assert_allclose(found["entropy"], entropy[..., 1:].mean(-1), rtol=2e-5)

    # A row's scores are the logarithms of its weights but for a constant, which drops out.
    s = np.log(np.where(A > 0, A, np.nan))
    logits = [s[..., n, 0] - s[..., n, 1:n].mean(-1) for n in range(2, T)]
    np.testing.assert_allclose(found["sink_logit"], np.mean(logits, axis=0), atol=1e-5)

    mass = np.stack([A[..., k:, k].sum(-1) / (T - k) for k in range(T)], axis=-1)
    np.testing.assert_allclose(found["column_mass"], mass, rtol=2e-5)  # a text is a domain here
    half = mass[..., : T // 2]
    np.testing.assert_array_equal(found["top_position"], np.argsort(-half)[..., :2])
    np.testing.assert_allclose(found["top_mass"], -np.sort(-half)[..., :2], rtol=2e-5)

    norms = np.linalg.norm(golden["hidden"], axis=-1)
    np.testing.assert_allclose(found["residual_first"], norms[..., 0], rtol=1e-5)
    np.testing.assert_allclose(found["residual_max"], norms[..., 1:].max(-1), rtol=1e-5)
    np.testing.assert_allclose(found["residual_mean"], norms[..., 1:].mean(-1), rtol=1e-5)
    size = np.abs(golden["hidden"])
    ratio = size.max((-2, -1)) / np.median(size, axis=(-2, -1))
    np.testing.assert_allclose(found["max_median"], ratio, rtol=1e-4)


def test_value_norms_with_shared_values():
    """Query head h has the values of head h // 2, through its own slice of the output map."""
    golden, _, found = measure("llama3", make_mesh(1), 1)
    raw = files.read(GOLDEN / "llama3" / SINGLE)
    for l in range(2):
        x, name = golden["hidden"][l], f"model.layers.{l}"
        scale, Wv, Wo = (
            raw[f"{name}.{part}.weight"].astype(np.float64)
            for part in ("input_layernorm", "self_attn.v_proj", "self_attn.o_proj")
        )
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale
        v = (x @ Wv.T).reshape(*x.shape[:2], 2, 8)
        for h in range(4):
            value = v[:, :, h // 2]
            through = value @ Wo[:, 8 * h : 8 * (h + 1)].T
            for key, one in (("raw_value_ratio", value), ("value_ratio", through)):
                norms = np.linalg.norm(one, axis=-1)
                first, others = norms[:, 0], norms[:, 1:].mean(-1)
                np.testing.assert_allclose(found[key][l, :, h], first / others, rtol=1e-5)
            np.testing.assert_allclose(found["value_first"][l, :, h], first, rtol=1e-5)
            np.testing.assert_allclose(found["value_others"][l, :, h], others, rtol=1e-5)


def test_legacy_sink_logits_take_the_future_in():
    """Of GPT-2, whose scores need no rotation: the mean over all keys, seen or not."""
    golden, _, found = measure("gpt2", make_mesh(1), 2, legacy=True)
    raw = files.read(GOLDEN / "gpt2" / SINGLE)
    for l in range(2):
        x, name = golden["hidden"][l], f"transformer.h.{l}"
        parts = ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias")
        scale, bias, W, b = (raw[f"{name}.{part}"].astype(np.float64) for part in parts)
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale + bias
        q, k = ((x @ W + b)[..., 16 * i : 16 * (i + 1)].reshape(2, 10, 4, 4) for i in (0, 1))
        s = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
        wanted = (s[..., 0] - s.mean(-1)).mean(-1)
        np.testing.assert_allclose(found["sink_logit"][l], wanted, atol=1e-5)


@pytest.mark.parametrize("name, devices", [("gpt2_scaled", 1), ("llama3", 8)])
def test_changed_networks_are_those_of_the_reference(name, devices):
    """The first checkpoint's scores depend on the number of the layer."""
    golden = np.load(GOLDEN / name / "expected.npz")
    texts = passes.Texts(golden["tokens"], np.array([0, 1]), devices)
    variants = [Variant(l, "zero_head", h) for l in (1, 0) for h in range(4)]
    variants += [Variant(l, kind) for kind in ("no_attention", "no_mlp") for l in (0, 1)]
    found = passes.change(
        Checkpoint(GOLDEN / name), texts, variants, at_once=3, watched=0, gate=None,
        dtype=np.dtype(np.float32), mesh=make_mesh(devices),
    )  # fmt: skip
    wanted = [*golden["no_head"][1], *golden["no_head"][0], *golden["no_attention"]]
    np.testing.assert_allclose(found["loss"], [*wanted, *golden["no_mlp"]], rtol=1e-5)

    later = np.array([variant.layer == 1 for variant in variants])
    np.testing.assert_array_equal(np.isnan(found["residual_first"]).all(axis=1), later)
    module, variables = huggingface.load(GOLDEN / name)
    none = Interventions.none(2, 4)
    without = none._replace(attention_gain=none.attention_gain.at[0].set(0.0))
    _, seen = module.apply(variables, golden["tokens"], without, ("residual",))
    norms = np.linalg.norm(seen["residual"][0, :, 0], axis=-1)
    at = variants.index(Variant(0, "no_attention"))
    np.testing.assert_allclose(found["residual_first"][at], norms, rtol=1e-5)
    own = np.linalg.norm(golden["hidden"][1, :, 0], axis=-1)
    assert np.abs(norms / own - 1).min() > 1e-3


def test_each_function_compiles_once_for_all_layers_and_revisions():
    mesh, compiled = make_mesh(8), []

    def listen(event, _, **facts):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(facts.get("fun_name", ""))

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        golden, texts, _ = measure("smollm", mesh, 8)
        measure("smollm", mesh, 8)
        passes.change(
            Checkpoint(GOLDEN / "smollm"), texts, [Variant(l, "no_mlp") for l in (0, 1, 1)],
            at_once=2, watched=0, gate=None, dtype=np.dtype(np.float32), mesh=mesh,
        )  # fmt: skip
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    for name in ("measure", "change", "measure_loss"):
        assert compiled.count(f"jit({name})") == 1, compiled


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The config file's smallest size, carried out."""
    workdir = tmp_path_factory.mktemp("report")
    raw = studies.default("llm_report")
    raw.update(
        checkpoint="planted", tokens="random", revisions="planted", texts=8, length=32,
        max_heads=6, variants=4, gate_row=0.3, gate_column=0.9,
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=120)
    assert studies.run(studies.resolve(raw), workdir, console) == 0
    return workdir, json.loads((workdir / "results.json").read_text()), console.file.getvalue()


def test_planted_sinks_are_found(smoke):
    _, result, _ = smoke
    wanted = np.zeros((4, 4), bool)
    wanted[planted.FIRST_LAYER :, 1] = True
    np.testing.assert_array_equal(result["heads"]["upper"]["dormant"], wanted)
    wanted[planted.FIRST_LAYER :, 0] = True
    np.testing.assert_array_equal(result["heads"]["lower"]["dormant"], wanted)
    assert result["domains"]["lower"]["sink_rate"] == pytest.approx(6 / 16)
    assert result["domains"]["upper"]["sink_rate"] == pytest.approx(3 / 16)
    difference = np.array(result["difference"])
    assert difference[planted.FIRST_LAYER :, 0].min() > 0.5 > difference[:, 1:].max()
    for domain, share in (("lower", 6 / 16), ("upper", 3 / 16)):
        (sink,) = result["domains"][domain]["sinks"]
        assert (sink["position"], sink["id"]) == (0, 0)
        assert sink["share"] == pytest.approx(share, abs=0.02)


def test_planted_drain_and_peak_are_found(smoke):
    _, result, _ = smoke
    assert np.max(result["heads"]["lower"]["value_ratio"][planted.FIRST_LAYER + 1 :]) < 0.2
    first, largest = (
        np.array(result["residual"]["lower"][name]) for name in ("residual_first", "residual_max")
    )
    begins = planted.FIRST_LAYER + 1
    assert (first[begins:] / largest[begins:]).min() > 5
    assert (first[:begins] / largest[:begins]).max() < 2


def test_moving_what_is_there_already_changes_nothing(smoke):
    """Head 0 is dormant on one domain: to move its attention matters on the other alone."""
    _, result, _ = smoke
    change = {
        (one["layer"], one["head"]): one["loss_change"]
        for one in result["interventions"]
        if one["kind"] == "to_first"
    }
    for l in range(planted.FIRST_LAYER, 4):
        assert abs(change[l, 0]["lower"]) < 0.2 * abs(change[l, 0]["upper"])
        assert max(map(abs, change[l, 1].values())) < 1e-4


def test_the_peak_goes_with_the_mlp_that_makes_it(smoke):
    """The first token's residual after the watched layer, in the network and in changed ones."""
    _, result, _ = smoke
    layer = result["watched_layer"]
    own = result["residual"]["lower"]["residual_first"][layer + 1]
    first = {
        (one["kind"], one["layer"]): one["residual_first"]["lower"]
        for one in result["interventions"]
        if one["head"] is None
    }
    assert first["no_mlp", planted.FIRST_LAYER] < 0.3 * own
    assert first["no_mlp", 0] > 0.8 * own


def test_all_sink_heads_at_once(smoke):
    """Heads that are no sinks on a text keep what they attend to; those that are, lose it."""
    _, result, _ = smoke
    gated = {one["kind"]: one for one in result["interventions"] if one["layer"] is None}
    assert set(gated) == {"zero_sinks", "sinks_to_first"}
    moved, zeroed = (gated[kind]["loss_change"] for kind in ("sinks_to_first", "zero_sinks"))
    for domain in ("lower", "upper"):
        assert 1e-5 < abs(zeroed[domain]) and abs(moved[domain]) < 0.2 * abs(zeroed[domain])


def test_curves_over_revisions(smoke):
    workdir, result, _ = smoke
    dynamics = result["dynamics"]
    assert dynamics["step"] == [0, 250, 500, 750, 1000]
    assert (np.diff([logits[1] for logits in dynamics["sink_logit"]]) > 0).all()
    assert (np.diff(dynamics["residual_first"]) > 0).all()
    assert (np.diff(np.mean(dynamics["value_ratio"], axis=1)) < 0).all()
    arrays = np.load(workdir / "statistics.npz")
    every = arrays["revisions_sink_score"]
    assert every.shape == (5, 2, 4, 4)
    np.testing.assert_allclose(dynamics["sink_score"], every[:, :, 3].mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(every[-1, 0], result["heads"]["lower"]["sink_score"], rtol=1e-6)


def test_what_is_left_behind(smoke):
    workdir, result, printed = smoke
    pictures = sorted(path.stem for path in (workdir / "figures").iterdir())
    assert len(pictures) == 11
    html = (workdir / "report.html").read_text()
    assert html.count("data:image/png;base64,") == len(pictures)
    assert "Active and dormant heads" in html and "Interventions" in html
    arrays = np.load(workdir / "statistics.npz")
    assert arrays["sink_score"].shape == (4, 16, 4)
    assert arrays["intervention_loss"].shape == (len(result["interventions"]), 16)
    assert "memory about" in printed and "dormant heads" in printed


def smallest(folder, **changes):
    """Settings of a report on a golden checkpoint that removes nothing."""
    tokens = folder / "x.npy"
    np.save(tokens, np.load(GOLDEN / "olmo" / "expected.npz")["tokens"])
    given = {
        "checkpoint": str(GOLDEN / "olmo"), "tokens": str(tokens), "length": 10, "heads": "none",
        "sublayers": "none",
    } | changes  # fmt: skip
    return Settings(**given)


def test_a_report_that_was_stopped_goes_on(tmp_path, monkeypatch):
    measured, true_measure = [], passes.measure

    def measure(checkpoint, *args, **options):
        measured.append(checkpoint.directory.name)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return true_measure(checkpoint, *args, **options)

    monkeypatch.setattr(passes, "measure", measure)
    monkeypatch.setattr(output, "_draw", lambda *args: [])
    for step, shift in ((1, 0), (2, 1), (3, 2)):
        revision = tmp_path / f"step{step}"
        arrays = files.read(GOLDEN / "olmo" / SINGLE)
        name = "model.layers.0.mlp.up_proj.weight"
        files.write(revision / SINGLE, arrays | {name: np.roll(arrays[name], shift)})
        (revision / "config.json").write_text((GOLDEN / "olmo" / "config.json").read_text())
    settings = smallest(tmp_path, revisions=str(tmp_path), checkpoint=str(tmp_path / "step3"))
    workdir = tmp_path / "work"
    workdir.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(settings, workdir, Console(file=io.StringIO()))
    console = Console(file=io.StringIO(), width=100)
    assert run(settings, workdir, console) == 0
    assert measured == ["step3", "step1", "step2", "step2", "step3"]
    assert "statistics (was done)" in console.file.getvalue()
    result = (workdir / "results.json").read_text()
    assert len(set(json.loads(result)["dynamics"]["loss"])) == 3
    (workdir / "report.html").unlink()
    assert run(settings, workdir, Console(file=io.StringIO())) == 0
    assert len(measured) == 5 and (workdir / "report.html").is_file()
    assert (workdir / "results.json").read_text() == result

    other = tmp_path / "step2"  # weights under an old name are another checkpoint
    files.write(other / SINGLE, arrays | {name: np.roll(arrays[name], 3)})
    part = next((workdir / "parts").glob("statistics.npz"))
    part.write_bytes(part.read_bytes()[:100])  # and a damaged part is none
    assert run(settings, workdir, Console(file=io.StringIO())) == 0
    assert measured[5:] == ["step3", "step2"]


def test_what_is_no_number_is_null(tmp_path, monkeypatch):
    """A row of zeros, as paddings have, has no kurtosis; JSON has no nan."""
    monkeypatch.setattr(output, "_draw", lambda *args: [])
    arrays = files.read(GOLDEN / "olmo" / SINGLE)
    tokens = np.load(GOLDEN / "olmo" / "expected.npz")["tokens"]
    table = arrays["model.embed_tokens.weight"].copy()
    table[tokens[0, 3]] = 0
    files.write(tmp_path / "m" / SINGLE, arrays | {"model.embed_tokens.weight": table})
    (tmp_path / "m" / "config.json").write_text((GOLDEN / "olmo" / "config.json").read_text())
    settings = smallest(tmp_path, checkpoint=str(tmp_path / "m"))
    assert run(settings, tmp_path, Console(file=io.StringIO())) == 0

    def refuse(word):
        raise AssertionError(f"{word} in the JSON")

    result = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    kurtosis = result["residual"]["x"]["kurtosis"]
    assert kurtosis[0] is None and kurtosis[1] > 1


def test_one_domain_one_batch_and_nothing_removed(tmp_path):
    settings = smallest(tmp_path, dtype="bfloat16")
    assert run(settings, tmp_path, Console(file=io.StringIO())) == 0
    result = json.loads((tmp_path / "results.json").read_text())
    golden = np.load(GOLDEN / "olmo" / "expected.npz")
    assert result["domains"]["x"]["loss"] == pytest.approx(golden["loss"].mean(), rel=0.02)
    assert result["interventions"] == []


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"checkpoint": ""}, "config.checkpoint is empty"),
        ({"checkpoint": "nowhere"}, "there is no .*nowhere"),
        ({"length": 300}, "config.length=300 is more than the 256 tokens"),
        ({"length": 3}, "config.length must be at least 4"),
        ({"heads": "sinks"}, "config.heads='sinks'; did you mean 'sink'"),
        ({"heads": "L1H4"}, "config.heads names L1H4; the model has .* the heads 0 to 3"),
        ({"sublayers": "0,4"}, "config.sublayers names layer 4"),
        ({"sublayers": "-1"}, "config.sublayers='-1': write all, none or layers"),
        ({"dynamics_layer": 4}, "config.dynamics_layer names layer 4"),
        ({"dtype": "float16"}, "config.dtype='float16'"),
        ({"gate_row": 0.3}, "config.gate_row and config.gate_column go together"),
        ({"gate_row": 1.3, "gate_column": 0.5}, "config.gate_row must be from 0 to 1"),
        ({"dormant": 1.5}, "config.dormant must lie between 0 and 1"),
        ({"batch_size": 3}, "config.batch_size gives batches of 3, which do not divide"),
        ({"memory_limit": 1e-4}, "the report takes about .* config.memory_limit allows 0.00 GiB"),
        ({"tokenz": "random"}, "config.tokenz is not a setting; did you mean 'tokens'"),
        ({"revisions": "nowhere"}, "holds no directories with a config.json"),
        ({"revisions": str(GOLDEN / "gpt2")}, "gpt2 is another architecture than"),
    ],
)
def test_mistakes_end_in_a_sentence(tmp_path, monkeypatch, changes, sentence):
    def compiles(*args, **kwargs):
        raise AssertionError("it went on to compute")

    monkeypatch.setattr(passes, "measure", compiles)
    raw = studies.default("llm_report").to_dict()
    raw |= {"checkpoint": "planted", "tokens": "random", "texts": 8, "length": 32} | changes
    with pytest.raises(ConfigError, match=sentence):
        settings = studies.configs.section(Settings, raw, "config")
        studies.STUDIES["llm_report"].check(settings)
        run(settings, tmp_path, Console(file=io.StringIO()))


@pytest.mark.slow
def test_the_command_ends_in_a_sentence_and_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "crate_jax.main"]
    command += [
        "--config",
        "configs/extreme_tokens/llm_report.py",
        "--workdir",
        str(tmp_path / "w"),
    ]
    ids = tmp_path / "x.npy"
    np.save(ids, np.full((4, 32), 37))
    for checkpoint, sentence in (
        (GOLDEN / "llama2", "text 0 has the id 37 at position 0"),
        (tmp_path, "config.json; a checkpoint is a directory"),
    ):
        given = [
            f"--config.checkpoint={checkpoint}",
            f"--config.tokens={ids}",
            "--config.length=32",
        ]
        ended = subprocess.run(
            command + given, capture_output=True, text=True, cwd=GOLDEN.parents[2], timeout=120
        )
        shutil.rmtree(tmp_path / "w", ignore_errors=True)
        assert ended.returncode == 2
        assert sentence in ended.stderr and "Traceback" not in ended.stderr


def test_revisions_in_order_of_their_steps(tmp_path):
    for name in ("step1000-tokens4B", "step200-tokens1B", "notes"):
        (tmp_path / name).mkdir()
        if name != "notes":
            (tmp_path / name / "config.json").write_text("{}")
    found = checkpoints.find_revisions(str(tmp_path), tmp_path)
    assert [step for step, _ in found] == [200, 1000]
    assert [path.name for _, path in found] == ["step200-tokens1B", "step1000-tokens4B"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    listed = checkpoints.find_revisions(f"{tmp_path / 'b'},{tmp_path / 'a'}", tmp_path)
    assert [(step, path.name) for step, path in listed] == [(0, "b"), (1, "a")]


@pytest.mark.parametrize(
    "names, steps",
    [
        (("OLMo-7B-0424-step1000", "OLMo-7B-0424-step500"), (1000, 500)),
        (("stage1-step_20-tokens1B", "stage2-step_10-tokens2B"), (20, 10)),
        (("checkpoint-30", "checkpoint-4"), (30, 4)),
        (("a1b2c3", "9f00d1"), (1, 0)),  # no numbers: as a directory lists them
        (("model-7b-v2", "model-7b-v2-final"), (0, 1)),
        (("step1000", "final"), (1, 0)),
    ],
)
def test_steps_in_names(tmp_path, names, steps):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    found = {path.name: step for step, path in checkpoints.find_revisions(str(tmp_path), tmp_path)}
    assert found == dict(zip(names, steps, strict=True))


def test_sinks_are_listed_by_place_or_by_id():
    """Two texts of one domain, one head: the first token, and an id that comes at any place."""
    tokens = np.array([[5, 7, 3, 9], [6, 3, 8, 9]])
    found = {
        "top_position": np.array([[[[0, 2]], [[1, 0]]]]),
        "top_mass": np.array([[[[0.9, 0.4]], [[0.6, 0.2]]]]),
    }
    (sinks,) = summary.list_sinks(found, tokens, np.array([0, 0]))
    assert sinks == [
        {"position": None, "id": 3, "share": 1.0},
        {"position": 0, "id": None, "share": 0.5},
    ]


def test_heads_that_are_chosen():
    score_DLH = np.array([[[0.9, 0.1], [0.6, 0.8]], [[0.9, 0.7], [0.6, 0.7]]])
    settings = {"sublayers": "none", "max_heads": 2}
    for heads, wanted in (
        ("sink", [(0, 0), (1, 1)]),
        ("difference", [(0, 1), (1, 1)]),
        ("all", [(0, 1), (1, 1), (0, 0), (1, 0)]),
        ("L1H0", [(1, 0)]),
        ("none", []),
    ):
        chosen = summary.choose_variants(Settings(heads=heads, **settings), score_DLH)
        assert [(v.layer, v.head) for v in chosen if v.kind == "to_first"] == wanted
        count = summary.count_variants(Settings(heads=heads, **settings), 2, 2)
        assert len(chosen) == count == 2 * len(wanted)


def test_processes_that_see_other_files(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gather = parts.multihost_utils
    monkeypatch.setattr(gather, "process_allgather", lambda mine: np.stack([mine, mine]))
    parts.check_alike(["a", "b"])
    monkeypatch.setattr(gather, "process_allgather", lambda mine: np.stack([mine, mine + 1]))
    with pytest.raises(ConfigError, match="the processes do not see the same config.checkpoint"):
        parts.check_alike(["a", "b"])


MIDDLE = Architecture("llama", 4096, 256, 2, 8, 4, 32, 688, 512)


@pytest.mark.parametrize("devices, dtype", [(1, "float32"), (8, "bfloat16")])
def test_the_estimate_bounds_what_the_compiler_says(devices, dtype):
    B, T, W = 8, 64, 4
    mesh = make_mesh(devices)
    need = memory.estimate(
        MIDDLE, texts=B, length=T, batch_size=B, variants_at_once=W, variants=W, dtype=dtype,
        devices=devices, gated=True,
    )  # fmt: skip

    def array(shape, sharding, kind=dtype):
        return jax.ShapeDtypeStruct(shape, kind, sharding=sharding)

    def tensors(table):
        return {
            leaf.name: array(leaf.shape, layers._split(leaf.shape, mesh)) for leaf in table.values()
        }

    options = {"arch": MIDDLE, "mesh": mesh}
    x_BTC = array((B, T, MIDDLE.width), batch_sharding(mesh))
    x_WBTC = array((W, B, T, MIDDLE.width), layers._variants_sharding(mesh))
    gains = [array(s, None, "float32") for s in ((W, 8), (W, 8), (W,), (W,), (W, 8), (W, 8))]
    layer, number = tensors(huggingface.leaves(MIDDLE)[0]), np.int32(0)
    lowered = {
        "measure": layers.measure.lower(layer, x_BTC, number, legacy=False, **options),
        "change": layers.change.lower(layer, x_WBTC, number, Interventions(*gains), **options),
        "loss": layers.measure_loss.lower(
            tensors(layers._head_leaves(MIDDLE)), x_BTC, array((B, T), None, jnp.int32), **options
        ),
    }
    largest = 0
    for name, one in lowered.items():
        said = one.compile().memory_analysis()
        taken = said.argument_size_in_bytes + said.temp_size_in_bytes + said.output_size_in_bytes
        assert taken < need.total, name
        largest = max(largest, taken)
    assert need.total < 5 * largest


def test_a_report_on_seven_billion_parameters_fits_in_a_small_part_of_them():
    arch = Architecture("llama", 32000, 4096, 32, 32, 32, 128, 11008, 4096)
    parts = {"texts": 160, "length": 64, "variants_at_once": 8, "variants": 80}
    need = memory.estimate(arch, batch_size=8, dtype="bfloat16", **parts)
    weights = 2 * 6_738_415_616
    assert need.weights < weights / 8
    assert need.total < weights
    deeper = memory.estimate(
        dataclasses.replace(arch, depth=64), batch_size=8, dtype="bfloat16", **parts
    )
    assert deeper == need


def test_the_mesh_changes_nothing():
    assert isinstance(make_mesh(8), Mesh)
    _, _, one = measure("olmo", make_mesh(1), 8)
    _, _, eight = measure("olmo", make_mesh(8), 8)
    for name, array in one.items():
        np.testing.assert_allclose(eight[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
