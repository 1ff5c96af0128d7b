import builtins
import json

import numpy as np
import pytest

from crate_jax.config import ConfigError
from crate_jax.data import tokens

IDS = np.arange(24).reshape(4, 6)


def load(source, **settings):
    return tokens.load(str(source), **({"length": 4, "texts": 10, "vocab": 24} | settings))


def write_lines(path, entries):
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n")
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One word an id, a text begins with <s>."""
    library = pytest.importorskip("tokenizers")
    vocab = {"<s>": 0, "?": 1} | {word: i for i, word in enumerate("abcdefgh", 2)}
    tool = library.Tokenizer(library.models.WordLevel(vocab, unk_token="?"))
    tool.pre_tokenizer = library.pre_tokenizers.Whitespace()
    tool.post_processor = library.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tool.save(str(path))
    return path


def test_rows_of_an_npy(tmp_path):
    np.save(tmp_path / "x.npy", IDS.astype(np.uint16))
    (one,) = load(tmp_path / "x.npy", texts=3)
    assert (one.name, one.dropped) == ("x", 0)
    assert one.tokens.dtype == np.int32
    np.testing.assert_array_equal(one.tokens, IDS[:3, :4])


def test_a_stream_is_cut_into_texts(tmp_path):
    np.save(tmp_path / "x.npy", IDS.ravel()[:22])
    (one,) = load(tmp_path / "x.npy")
    np.testing.assert_array_equal(one.tokens, IDS.ravel()[:20].reshape(5, 4))
    assert one.dropped == 1


def test_lines_of_ids_and_objects(tmp_path):
    entries = [[1, 2, 3, 4, 5], {"input_ids": [6, 7, 8, 9]}, {"tokens": [1]}, {"ids": [3] * 4}]
    (one,) = load(write_lines(tmp_path / "x.jsonl", entries))
    np.testing.assert_array_equal(one.tokens, [[1, 2, 3, 4], [6, 7, 8, 9], [3, 3, 3, 3]])
    assert one.dropped == 1


def test_text_through_a_tokenizer(tmp_path, tokenizer):
    lines = write_lines(tmp_path / "x.jsonl", [{"text": "a b c d e"}, {"text": "h"}])
    (one,) = load(lines, tokenizer=tokenizer)
    np.testing.assert_array_equal(one.tokens, [[0, 2, 3, 4]])
    assert one.dropped == 1
    (tmp_path / "y.txt").write_text("a b c\nd e f g")
    (two,) = load(tmp_path / "y.txt", tokenizer=tokenizer)
    np.testing.assert_array_equal(two.tokens, [[0, 2, 3, 4], [0, 5, 6, 7]])
    assert two.dropped == 1
    assert tokens.decode(tokenizer, [0, 9]) == ["<s>", "h"]


def test_domains_by_name_and_by_directory(tmp_path):
    for name in ("b", "a"):
        np.save(tmp_path / f"{name}.npy", IDS)
    named = f"wiki={tmp_path / 'a.npy'}, code={tmp_path / 'b.npy'}"
    assert [one.name for one in load(named)] == ["wiki", "code"]
    assert [one.name for one in load(tmp_path)] == ["a", "b"]
    assert [one.name for one in load(f"x={tmp_path}")] == ["x/a", "x/b"]


def test_random_texts_need_no_file():
    lower, upper = load("random", texts=50, seed=3)
    assert lower.tokens.shape == upper.tokens.shape == (50, 4)
    assert (lower.tokens[:, 0] == 0).all() and (upper.tokens[:, 0] == 0).all()
    assert lower.tokens.max() < 12 <= upper.tokens[:, 1:].min() and upper.tokens.max() < 24
    np.testing.assert_array_equal(lower.tokens, load("random", texts=50, seed=3)[0].tokens)


@pytest.mark.parametrize("bad", [24, -1])
def test_ids_out_of_range(tmp_path, bad):
    ids = IDS.copy()
    ids[2, 3] = bad
    np.save(tmp_path / "x.npy", ids)
    with pytest.raises(
        ConfigError,
        match=f"text 2 has the id {bad} at position 3, and the model has the ids 0 to 23",
    ):
        load(tmp_path / "x.npy")


def test_text_without_a_tokenizer(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "x.txt").write_text("a b c")
    with pytest.raises(ConfigError, match="x.txt is text and takes a tokenizer, and there is no"):
        load(tmp_path / "x.txt", tokenizer=tmp_path / "tokenizer.json")

    def without(name, *args, **kwargs):
        if name == "tokenizers":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(tokens, "_TOKENIZERS", {})
    with pytest.raises(
        ConfigError, match=r"takes the package tokenizers: pip install 'crate_jax\["
    ):
        load(tmp_path / "x.txt", tokenizer=tokenizer)


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("x.jsonl", "[1, 2", "x.jsonl, line 1 is no JSON"),
        ("x.jsonl", '[1, 2]\n{"words": 3}', "line 2 is neither a list of ids nor an object"),
        ("x.jsonl", "[1, 2.5]", "line 1 is neither a list of ids"),
        ("x.jsonl", "[1, 2]", r"holds no text of 4 tokens \(1 shorter ones\)"),
        ("x.npy", "nothing", "cannot be read as .npy"),
        ("x.json", "[]", "suffix '.json'; did you mean '.jsonl'"),
    ],
)
def test_files_that_are_wrong(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        load(tmp_path / name)


def test_text_that_is_not_utf8(tmp_path, tokenizer):
    (tmp_path / "x.jsonl").write_bytes(b'[1, 2, 3, 4]\n{"text": "\xff"}\n')
    (tmp_path / "y.txt").write_bytes(b"a b \xfe")
    for name, byte in (("x.jsonl", "ff"), ("y.txt", "fe")):
        with pytest.raises(ConfigError, match=rf"{name} is not UTF-8 \(byte 0x{byte}\)"):
            load(tmp_path / name, tokenizer=tokenizer)


def test_several_arrays_in_a_file_for_one(tmp_path):
    np.savez(tmp_path / "x.npz", a=IDS)
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(ConfigError, match=r"x.npy is an .npz; save one array"):
        load(tmp_path / "x.npy")


def test_sources_that_are_wrong(tmp_path):
    with pytest.raises(ConfigError, match="config.tokens is empty"):
        load("")
    with pytest.raises(ConfigError, match="there is no file .*x.npy"):
        load(f"a={tmp_path / 'x.npy'}")
    with pytest.raises(ConfigError, match="holds no file that ends in"):
        load(tmp_path)
    np.save(tmp_path / "x.npy", IDS)
    with pytest.raises(ConfigError, match="names the domain 'x' twice"):
        load(f"{tmp_path / 'x.npy'},{tmp_path / 'x.npy'}")
    np.save(tmp_path / "y.npy", IDS.astype(float))
    with pytest.raises(ConfigError, match="must hold integers.*it holds float64"):
        load(tmp_path / "y.npy")
