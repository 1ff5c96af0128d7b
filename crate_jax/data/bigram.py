"""Bigram laws: how likely one token is after another, counted in a text, loaded or made up.

The Bigram-Backcopy task of "Active-Dormant Attention Heads" (arXiv 2410.13835) takes the characters
of tiny Shakespeare, sorted by code point, and adds ``<s>``, which starts every sequence, and a
delimiter ``<d>``, which nothing emits. Both are followed by the unigram law.
"""

import dataclasses
import pathlib
import zipfile

import numpy as np

from crate_jax.config import ConfigError, DataConfig, nearest
from crate_jax.data.sources import DataMissingError, tfds_builder

SOURCES = ("synthetic", "tfds", "text", "npz")

CHARACTERS = 65
"""Of the synthetic law, as many as tiny Shakespeare has."""

CONCENTRATION = 12.0
"""Of the synthetic law's Dirichlet rows: their mean entropy is near that of tiny Shakespeare."""

TFDS_SPLITS = ("train", "validation", "test")
"""In the order in which they make the whole text."""


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """A bigram law.

    Attributes:
      P: float64 ``(V, V)``; row u is the law of the token after u.
      marginal: float64 ``(V,)``, how frequent a token is; 0 for ``<s>`` and ``<d>``.
      tokens: V names.
      bos: id of ``<s>``, the first one where there are several.
      delimiter: id of ``<d>``; None where there is none.
      n_bos: how many start tokens there are, ``bos``, ``bos + 1``, ...
    """

    P: np.ndarray
    marginal: np.ndarray
    tokens: tuple[str, ...]
    bos: int
    delimiter: int | None = None
    n_bos: int = 1

    def __post_init__(self):
        for name in ("P", "marginal"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        V = len(self.tokens)
        if self.P.shape != (V, V) or self.marginal.shape != (V,):
            raise ConfigError(
                f"a bigram law of {V} tokens has P {(V, V)} and marginal {(V,)}; got "
                f"{self.P.shape} and {self.marginal.shape}."
            )
        special = [*self.bos_tokens, *([] if self.delimiter is None else [self.delimiter])]
        if len(set(special)) < len(special) or not all(0 <= i < V for i in special):
            raise ConfigError(
                f"the start tokens {list(self.bos_tokens)} and the delimiter {self.delimiter} of a "
                f"bigram law are different ids below {V}."
            )
        for name, rows in (("P", self.P), ("marginal", self.marginal[None])):
            wrong = ~((rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) < 1e-6))
            if wrong.any():
                row = int(wrong.argmax())
                raise ConfigError(
                    f"every row of a bigram law's {name} is a distribution; row {row} has the "
                    f"least entry {rows[row].min():g} and the sum {rows[row].sum():g}."
                )
        if self.marginal[special].any():
            raise ConfigError("the marginal of a bigram law is 0 at <s> and at the delimiter.")

    @property
    def bos_tokens(self) -> range:
        return range(self.bos, self.bos + self.n_bos)

    @property
    def ordinary(self) -> np.ndarray:
        """Ids of the tokens that are neither ``<s>`` nor ``<d>``, ascending."""
        special = {*self.bos_tokens, self.delimiter}
        return np.array([i for i in range(len(self.tokens)) if i not in special])


def check_source(source: str, setting: str = "the bigram source") -> None:
    """Raises a ConfigError where a source has no known kind, or does not say what to read.

    Args:
      source: see :func:`load`.
      setting: how an error names where it is set.
    """
    kind, colon, rest = source.partition(":")
    if kind not in SOURCES:
        raise ConfigError(f"{setting}={source!r} is none{nearest(kind, SOURCES)}")
    if kind == "synthetic" and colon:
        raise ConfigError(f"{setting}={source!r}: write synthetic alone; its seed is a setting.")
    if kind != "synthetic" and not rest:
        what = {"tfds": "tfds:tiny_shakespeare"}.get(kind, f"{kind}:PATH")
        raise ConfigError(f"{setting}={source!r} names no data; write {what}.")


def load(
    source: str = "synthetic",
    *,
    data_dir: str | None = None,
    seed: int = 0,
    settings: tuple[str, str] = ("the bigram source", "data_dir"),
) -> Law:
    """A bigram law by name.

    Args:
      source: ``synthetic``; ``tfds:tiny_shakespeare`` (or another TFDS data set with a feature
        ``text``: its splits train, validation and test one after another); ``text:PATH``, UTF-8; or
        ``npz:PATH`` with the arrays ``P``, ``marginal``, ``bos`` and, if you like, ``delimiter``
        and ``tokens``.
      data_dir: root of the TFDS files; None means TFDS's own default.
      seed: of the synthetic law.
      settings: how errors name where ``source`` and ``data_dir`` are set.

    Raises:
      DataMissingError: where the file or data set is not there.
      ConfigError: on an unknown source, or contents that are no bigram law.
    """
    check_source(source, settings[0])
    kind, _, rest = source.partition(":")
    if kind == "synthetic":
        return synthetic(seed)
    if kind == "tfds":
        return from_text(_tfds_text(rest, data_dir, settings))
    path = pathlib.Path(rest).expanduser()
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "is not there"
        raise DataMissingError(f"{settings[0]}={source!r}: {path} {what}.")
    if kind == "npz":
        return _from_npz(path)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}.") from error
    return from_text(text)


def synthetic(seed: int = 0) -> Law:
    """A law that needs no data: a Zipf marginal, ``1/rank``, and Dirichlet rows around it."""
    zipf = 1 / np.arange(1, CHARACTERS + 1)
    zipf /= zipf.sum()
    P = np.random.default_rng(seed).dirichlet(CONCENTRATION * zipf, CHARACTERS)
    return _with_specials(P, zipf, [f"c{i}" for i in range(CHARACTERS)])


def from_text(text: str) -> Law:
    """The bigram and unigram frequencies of all characters of a text.

    The last character has no successor where it stands; one that stands nowhere else gets the
    unigram law, where the bare quotient of counts would be 0/0.
    """
    if len(text) < 2:
        raise ConfigError(f"bigrams are counted in a text of 2 characters at least; got {text!r}.")
    points, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    C = len(points)
    pairs = np.bincount(ids[:-1] * C + ids[1:], minlength=C * C).reshape(C, C)
    unigrams = np.bincount(ids)
    pairs = np.where(pairs.any(axis=1, keepdims=True), pairs, unigrams)
    return _with_specials(
        pairs / pairs.sum(axis=1, keepdims=True), unigrams / len(ids), [chr(p) for p in points]
    )


def with_bos(law: Law, n_bos: int) -> Law:
    """The law with another number of start tokens, 0 included.

    Its ids are those of the ordinary tokens in their order, the start tokens, the delimiter; a law
    that has the right number already keeps the ids it has.
    """
    if n_bos == law.n_bos:
        return law
    ordinary, C = law.ordinary, len(law.ordinary)
    last = [] if law.delimiter is None else [law.delimiter]
    kept = np.array([*ordinary, *last])
    first = law.P[law.bos] if law.n_bos else law.marginal
    V = len(kept) + n_bos
    old = [i for i in range(V) if not C <= i < C + n_bos]
    P, marginal = np.zeros((V, V)), np.zeros(V)
    P[np.ix_(old, old)] = law.P[np.ix_(kept, kept)]
    P[C : C + n_bos, old] = first[kept]
    marginal[old] = law.marginal[kept]
    names = [law.tokens[i] for i in kept]
    return Law(
        P,
        marginal,
        (*names[:C], *(f"<s_{i}>" for i in range(n_bos)), *names[C:]),
        bos=C,
        delimiter=V - 1 if last else None,
        n_bos=n_bos,
    )


def with_delimiter(law: Law, probability: float) -> Law:
    """The law where every ordinary token is followed by ``<d>`` with a probability.

    At 0 it is the law itself, whatever that emits.
    """
    if not probability:
        return law
    if law.delimiter is None:
        raise ConfigError("this bigram law has no delimiter token to emit; set delimiter to 0.")
    rows = law.P[law.ordinary]
    rows[:, law.delimiter] = 0
    rows *= (1 - probability) / rows.sum(axis=1, keepdims=True)
    rows[:, law.delimiter] = probability
    P = law.P.copy()
    P[law.ordinary] = rows
    return dataclasses.replace(law, P=P)


def _with_specials(P_CC: np.ndarray, marginal_C: np.ndarray, characters: list[str]) -> Law:
    """Adds ``<s_0>`` and ``<d>``, both followed by the unigram law."""
    C = len(characters)
    P = np.zeros((C + 2, C + 2))
    P[:C, :C], P[C:, :C] = P_CC, marginal_C
    marginal = np.append(marginal_C, [0, 0])
    return Law(P, marginal, (*characters, "<s_0>", "<d>"), bos=C, delimiter=C + 1)


def _tfds_text(name: str, data_dir: str | None, settings: tuple[str, str]) -> str:
    try:
        builder = tfds_builder(DataConfig(source=f"tfds:{name}", data_dir=data_dir))
    except ConfigError as error:  # which names the settings of a run on images
        text = str(error).replace("config.data.source", settings[0])
        raise type(error)(text.replace("config.data.data_dir", settings[1])) from error
    splits = [split for split in TFDS_SPLITS if split in builder.info.splits]
    if "text" not in builder.info.features or not splits:
        raise ConfigError(
            f"the TFDS data set {name!r} has no text to count bigrams in: it wants a feature "
            f"'text' and one of the splits {', '.join(TFDS_SPLITS)}; it has the features "
            f"{', '.join(builder.info.features)} and the splits {', '.join(builder.info.splits)}."
        )
    records = (record for split in splits for record in builder.as_data_source(split))
    return b"".join(record["text"] for record in records).decode()


def _from_npz(path: pathlib.Path) -> Law:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is not an .npz file of plain arrays: {error}.") from error
    missing = {"P", "marginal", "bos"} - held.keys()
    if missing:
        raise ConfigError(
            f"{path} lacks {', '.join(sorted(missing))}; it holds {', '.join(sorted(held))}. A "
            f"bigram law is P (V, V), marginal (V,) and bos, the id of <s>."
        )
    V, bos = len(held["P"]), int(held["bos"])
    delimiter = int(held["delimiter"]) if "delimiter" in held else None
    if delimiter is None and V == bos + 2:
        delimiter = bos + 1  # the layout of the other sources
    tokens = tuple(str(t) for t in held["tokens"]) if "tokens" in held else _names(V, bos)
    return Law(held["P"], held["marginal"], tokens, bos, delimiter)


def _names(V: int, bos: int) -> tuple[str, ...]:
    return tuple("<s_0>" if i == bos else f"c{i}" for i in range(V))
