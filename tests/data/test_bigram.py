import collections
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from crate_jax.config import ConfigError
from crate_jax.data import DataMissingError, bigram
from tests.data.tiny_tfds import prepare

TEXT = "abracadabra, a bad cab\r\nebb\n"


class TinyPlays(tfds.core.GeneratorBasedBuilder):
    """The layout of ``tiny_shakespeare``: one example a split, the whole text in three pieces."""

    VERSION = tfds.core.Version("1.0.0")
    PIECES = {"train": TEXT[:20], "validation": TEXT[20:24], "test": TEXT[24:]}

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(piece) for split, piece in self.PIECES.items()}

    def _generate_examples(self, piece):
        yield 0, {"text": piece}


class TinyPlot(TinyPlays):
    PIECES = {"plot": TEXT}


def counted(text):
    """P and marginal of the ordinary characters, one pair at a time."""
    characters = sorted(set(text))
    pairs = collections.Counter(zip(text, text[1:], strict=False))
    P = np.zeros((len(characters),) * 2)
    for i, a in enumerate(characters):
        total = sum(n for (left, _), n in pairs.items() if left == a)
        for j, b in enumerate(characters):
            P[i, j] = pairs[a, b] / total
    return characters, P, np.array([text.count(c) for c in characters]) / len(text)


def assert_is_law_of(law, text):
    characters, P, marginal = counted(text)
    C = len(characters)
    assert law.tokens == (*characters, "<s_0>", "<d>")
    assert (law.bos, law.delimiter, law.n_bos) == (C, C + 1, 1)
    np.testing.assert_allclose(law.P[:C, :C], P, rtol=1e-15)
    np.testing.assert_allclose(law.marginal[:C], marginal, rtol=1e-15)
    np.testing.assert_array_equal(law.P[C:, :C], [law.marginal[:C]] * 2)
    assert not law.P[:, C:].any() and not law.marginal[C:].any()
    np.testing.assert_array_equal(law.ordinary, np.arange(C))


def test_a_text_is_counted(tmp_path):
    assert_is_law_of(bigram.from_text(TEXT), TEXT)
    path = tmp_path / "cab.txt"
    path.write_bytes(TEXT.encode())
    assert_is_law_of(bigram.load(f"text:{path}"), TEXT)  # \r\n is two characters


def test_characters_are_in_the_order_of_code_points():
    assert bigram.from_text("zé€𝄞zaé").tokens[:5] == ("a", "z", "é", "€", "𝄞")


def test_a_last_character_without_successor_is_followed_by_any():
    law = bigram.from_text("aab")
    np.testing.assert_allclose(law.P[1, :2], [2 / 3, 1 / 3])
    np.testing.assert_allclose(law.P[0, :2], [1 / 2, 1 / 2])


def test_tfds_pieces_are_joined_before_they_are_counted(tmp_path):
    prepare(tmp_path, TinyPlays)
    assert_is_law_of(bigram.load("tfds:tiny_plays", data_dir=str(tmp_path)), TEXT)


def test_tfds_is_read_without_tensorflow(tmp_path):
    prepare(tmp_path, TinyPlays)
    code = (
        "import sys; from crate_jax.data import bigram\n"
        f"bigram.load('tfds:tiny_plays', data_dir={str(tmp_path)!r})\n"
        "assert 'tensorflow' not in sys.modules"
    )
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


def test_the_synthetic_law():
    law = bigram.load("synthetic")
    assert len(law.tokens) == 67 and (law.bos, law.delimiter) == (65, 66)
    rank = np.arange(1, 66)
    np.testing.assert_allclose(law.marginal[:65] * rank, law.marginal[0], rtol=1e-12)
    assert not law.P[:, 65:].any()
    np.testing.assert_array_equal(law.P[65:], [law.marginal] * 2)
    other = bigram.load("synthetic", seed=1)
    assert np.abs(other.P - law.P).max() > 0.1 and np.all(other.marginal == law.marginal)
    np.testing.assert_array_equal(bigram.load().P, law.P)
    # rows scatter around the marginal: E P[u] = marginal
    mean = np.mean([bigram.synthetic(s).P[:65, :3].mean(axis=0) for s in range(20)], axis=0)
    np.testing.assert_allclose(mean, law.marginal[:3], rtol=0.05)


def save(path, law, **changes):
    held = {"P": law.P, "marginal": law.marginal, "bos": law.bos} | changes
    np.savez(path, **{name: value for name, value in held.items() if value is not None})
    return f"npz:{path}"


def test_npz(tmp_path):
    law = bigram.from_text(TEXT)
    source = save(tmp_path / "law.npz", law, tokens=np.array(law.tokens), delimiter=law.delimiter)
    back = bigram.load(source)
    assert (back.tokens, back.bos, back.delimiter) == (law.tokens, law.bos, law.delimiter)
    np.testing.assert_array_equal(back.P, law.P)
    np.testing.assert_array_equal(back.marginal, law.marginal)
    assert bigram.load(save(tmp_path / "bare.npz", law)).delimiter == law.delimiter


def test_npz_with_its_own_order_of_ids(tmp_path):
    law = bigram.from_text("abcabacb")
    order = [3, 0, 1, 2]  # <s> first, no delimiter
    source = save(tmp_path / "first.npz", law, P=law.P[np.ix_(order, order)],
                  marginal=law.marginal[order], bos=0)  # fmt: skip
    own = bigram.load(source)
    assert own.delimiter is None and list(own.ordinary) == [1, 2, 3]
    assert bigram.with_bos(own, 1) is own
    two = bigram.with_bos(own, 2)
    assert (two.bos, two.n_bos, two.delimiter, len(two.tokens)) == (3, 2, None, 5)
    np.testing.assert_array_equal(two.P[:3, :3], law.P[:3, :3])


@pytest.mark.parametrize("n_bos", [0, 1, 2])
def test_start_tokens(n_bos):
    law = bigram.from_text(TEXT)
    C = law.bos
    other = bigram.with_bos(law, n_bos)
    starts = [f"<s_{i}>" for i in range(n_bos)]
    assert other.tokens == (*law.tokens[:C], *starts, "<d>")
    assert list(other.bos_tokens) == list(range(C, C + n_bos)) and other.delimiter == C + n_bos
    np.testing.assert_array_equal(other.P[:C, :C], law.P[:C, :C])
    np.testing.assert_array_equal(other.P[C:, :C], np.tile(law.marginal[:C], (n_bos + 1, 1)))
    assert not other.P[:, C:].any()
    again = bigram.with_bos(other, 1)
    assert again.tokens == law.tokens
    np.testing.assert_array_equal(again.P, law.P)


def test_the_delimiter_takes_its_share_of_ordinary_rows_alone():
    law = bigram.from_text(TEXT)
    C = law.bos
    with_d = bigram.with_delimiter(law, 0.2)
    np.testing.assert_allclose(with_d.P[:C, :C], 0.8 * law.P[:C, :C], rtol=1e-14)
    assert np.all(with_d.P[:C, law.delimiter] == 0.2)
    np.testing.assert_array_equal(with_d.P[C:], law.P[C:])
    np.testing.assert_allclose(bigram.with_delimiter(with_d, 0.2).P, with_d.P, rtol=1e-15)
    assert bigram.with_delimiter(law, 0) is law


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("synthetics", "did you mean 'synthetic'"),
        ("text:", "text:PATH"),
        ("tfds", "tfds:tiny_shakespeare"),
        ("text:{dir}/none.txt", "none.txt is not there"),
        ("npz:{dir}/none.npz", "none.npz is not there"),
        ("text:{dir}", "is a folder, not a file"),
        ("synthetic:3", "synthetic alone"),
        ("text:{dir}/latin.txt", "not UTF-8"),
        ("text:{dir}/short.txt", "2 characters"),
        ("npz:{dir}/latin.txt", "not an .npz"),
        ("npz:{dir}/lacking.npz", "lacks bos, marginal"),
        ("npz:{dir}/wrong.npz", "row 1 has the least entry"),
        ("npz:{dir}/shape.npz", "of 4 tokens has P"),
        ("npz:{dir}/bos.npz", "different ids below 4"),
        ("npz:{dir}/frequent.npz", "is 0 at <s>"),
        ("tfds:tiny_plot", "has no text to count"),
        ("tfds:tiny_nothing", "tiny_nothing"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, source, words):
    (tmp_path / "latin.txt").write_bytes("ébé".encode("latin1"))
    (tmp_path / "short.txt").write_text("a")
    good = bigram.from_text("abab")
    P = good.P.copy()
    P[1] *= 0.5
    np.savez(tmp_path / "lacking.npz", P=good.P)
    save(tmp_path / "wrong.npz", good, P=P)
    save(tmp_path / "shape.npz", good, marginal=good.marginal[:3])
    save(tmp_path / "bos.npz", good, bos=7)
    save(tmp_path / "frequent.npz", good, bos=0)
    if "tiny_plot" in source:
        prepare(tmp_path, TinyPlot)
    with pytest.raises(ConfigError, match=words):
        bigram.load(source.format(dir=tmp_path), data_dir=str(tmp_path))


def test_a_missing_data_set_is_told_from_a_wrong_one(tmp_path):
    with pytest.raises(DataMissingError):
        bigram.load(f"text:{tmp_path}/none.txt")
    with pytest.raises(DataMissingError, match="Prepare it with"):
        bigram.load("tfds:tiny_plays", data_dir=str(tmp_path))


def test_published_counts_of_tiny_shakespeare():
    """Skipped without the data: a prepared TFDS copy, or a text that TINY_SHAKESPEARE names."""
    path = os.environ.get("TINY_SHAKESPEARE")
    try:
        law = bigram.load(f"text:{path}" if path else "tfds:tiny_shakespeare")
    except DataMissingError as error:
        pytest.skip(str(error))
    assert (len(law.tokens), law.bos, law.delimiter) == (67, 65, 66)
    frequent = np.argsort(-law.marginal)[:5]
    assert frequent.tolist() == [1, 43, 58, 53, 39]
    assert [law.tokens[i] for i in frequent] == [" ", "e", "t", "o", "a"]
    assert round(1_115_394 * law.marginal[1]) == 169_892
    tau = law.P[:, frequent[:3]].sum(axis=1)  # to a trigger; 1 cannot be left again
    assert [law.tokens[i] for i in np.flatnonzero(tau > 1 - 1e-12)] == ["3"]


def test_errors_name_the_settings_that_they_are_told(tmp_path):
    names = {"data_dir": str(tmp_path), "settings": ("config.law", "config.dir")}
    with pytest.raises(DataMissingError, match="config.law='tfds:tiny_nothing'"):
        bigram.load("tfds:tiny_nothing", **names)
    with pytest.raises(DataMissingError, match="or point config.dir to"):
        bigram.load("tfds:tiny_plays", **names)
    with pytest.raises(ConfigError, match="config.law='npz:' names no data"):
        bigram.load("npz:", **names)
