"""Token ids of texts, by domain: from ``.npy``, ``.jsonl``, or text through a ``tokenizer.json``.

A source is written ``wiki=wiki.npy,code=code.jsonl``: name and file of each domain. A name may be
left out (the file's stem is it), and a directory stands for all its files.

    .npy     integers (texts, tokens), or one stream (tokens,), which is cut into texts
    .jsonl   a text a line: a list of ids, or an object with ``tokens``, ``input_ids`` or ``ids``,
             or with ``text``, which takes a tokenizer
    .txt     one stream of text, cut into texts that each begin as the tokenizer begins a text
             (Llama's with its BOS, OLMo's with nothing)
    random   two domains of random ids, ``lower`` and ``upper``, to try things out

Every text is cut to the same length; shorter ones are left out and counted.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from crate_jax.config import ConfigError, nearest

SUFFIXES = (".jsonl", ".npy", ".txt")
ID_KEYS = ("tokens", "input_ids", "ids")


@dataclasses.dataclass(frozen=True)
class Domain:
    """Texts of one kind.

    Attributes:
      name: of the domain.
      tokens: ids ``(n, T)``, int32.
      dropped: texts that were too short.
    """

    name: str
    tokens: np.ndarray
    dropped: int = 0


def load(
    source: str,
    *,
    length: int,
    texts: int,
    vocab: int,
    tokenizer: str | pathlib.Path | None = None,
    seed: int = 0,
) -> list[Domain]:
    """The domains of a source, see the top of this file.

    Args:
      source: ``name=file,...``, a directory, or ``random``.
      length: tokens T a text.
      texts: that are taken of each domain at most, the first ones.
      vocab: ids of the model.
      tokenizer: ``tokenizer.json`` for sources that are text.
      seed: of ``random``.

    Raises:
      ConfigError: on a file that is missing or of an unknown kind, ids that the model does not
        have, text without a tokenizer, or a domain without a text that is long enough.
    """
    if source == "random":
        return _random(length, texts, vocab, seed)
    domains = []
    for name, path in _files(source):
        kept, dropped = [], 0
        for ids in _read(path, length, tokenizer):
            if len(kept) == texts:
                break
            if len(ids) < length:
                dropped += 1
                continue
            ids = np.asarray(ids[:length])
            if bad := np.flatnonzero((ids < 0) | (ids >= vocab)).tolist():
                raise ConfigError(
                    f"{path}: text {len(kept) + dropped} has the id {ids[bad[0]]} at position "
                    f"{bad[0]}, and the model has the ids 0 to {vocab - 1}; was it made with "
                    f"another model's tokenizer?"
                )
            kept.append(ids)
        if not kept:
            raise ConfigError(
                f"{path} holds no text of {length} tokens ({dropped} shorter ones); lower "
                f"config.length or take longer texts."
            )
        domains.append(Domain(name, np.stack(kept).astype(np.int32), dropped))
    return domains


def decode(tokenizer: str | pathlib.Path, ids) -> list[str]:
    """Each id as text, for labels; see :func:`load` for the tokenizer."""
    tool = _open_tokenizer(tokenizer)
    return [tool.id_to_token(int(i)) or str(i) for i in ids]


def _files(source: str) -> list[tuple[str, pathlib.Path]]:
    found = []
    for item in filter(None, (part.strip() for part in source.split(","))):
        name, equals, where = item.partition("=")
        path = pathlib.Path(where if equals else item).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
            if not inside:
                raise ConfigError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}.")
            found += [(f"{name}/{p.stem}" if equals else p.stem, p) for p in inside]
            continue
        if not path.is_file():
            raise ConfigError(
                f"config.tokens={source!r}: there is no file {path}. Write name=FILE, several with "
                f"commas, or random."
            )
        if path.suffix not in SUFFIXES:
            raise ConfigError(f"{path}: suffix {path.suffix!r}{nearest(path.suffix, SUFFIXES)}")
        found.append((name if equals else path.stem, path))
    names = [name for name, _ in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f"config.tokens={source!r} names the domain {min(twice)!r} twice; write name=FILE."
        )
    if not found:
        raise ConfigError(
            "config.tokens is empty; write name=FILE (.npy, .jsonl or .txt), several with commas, "
            "or random."
        )
    return found


def _read(path: pathlib.Path, length: int, tokenizer) -> Iterator[np.ndarray | list[int]]:
    """The texts of a file as ids, one after another, not yet cut."""
    try:
        if path.suffix == ".npy":
            yield from _read_npy(path, length)
        elif path.suffix == ".jsonl":
            yield from _read_jsonl(path, tokenizer)
        else:
            yield from _read_txt(path, length, tokenizer)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert it first."
        ) from error


def _read_txt(path, length, tokenizer):
    tool = _open_tokenizer(tokenizer, path)
    start = tool.encode("").ids
    ids = tool.encode(path.read_text(encoding="utf-8"), add_special_tokens=False).ids
    step = length - len(start)
    if step < 1:
        raise ConfigError(f"config.length={length} leaves no room for text; raise it.")
    for at in range(0, len(ids), step):
        yield start + ids[at : at + step]


def _read_npy(path, length):
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read as .npy: {error}.") from error
    if not isinstance(ids, np.ndarray):
        raise ConfigError(f"{path} is an .npz; save one array with np.save.")
    if ids.ndim not in (1, 2) or not np.issubdtype(ids.dtype, np.integer):
        raise ConfigError(
            f"{path} must hold integers (texts, tokens) or (tokens,); it holds {ids.dtype} "
            f"{ids.shape}."
        )
    if ids.ndim == 2:
        yield from ids
        return
    for at in range(0, len(ids), length):
        yield ids[at : at + length]


def _read_jsonl(path, tokenizer):
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{where} is no JSON: {error}.") from error
            if isinstance(entry, dict):
                ids = next((entry[key] for key in ID_KEYS if key in entry), None)
                if ids is None and isinstance(entry.get("text"), str):
                    ids = _open_tokenizer(tokenizer, path).encode(entry["text"]).ids
            else:
                ids = entry
            integers = isinstance(ids, list) and all(type(i) is int for i in ids)
            if not integers:
                raise ConfigError(
                    f"{where} is neither a list of ids nor an object with a list under "
                    f"{', '.join(ID_KEYS)} or a string under text."
                )
            yield ids


_TOKENIZERS = {}


def _open_tokenizer(path, asked_by=None):
    """The tokenizer of a ``tokenizer.json``; opened once a process."""
    because = f"{asked_by} is text and takes" if asked_by else "decoding takes"
    if path is None or not pathlib.Path(path).is_file():
        raise ConfigError(
            f"{because} a tokenizer, and there is no {path or 'tokenizer.json'}. Set "
            f"config.tokenizer to one, or give token ids (.npy, .jsonl)."
        )
    path = pathlib.Path(path).absolute()
    if path not in _TOKENIZERS:
        try:
            import tokenizers
        except ImportError as error:
            raise ConfigError(
                f"{because} the package tokenizers: pip install 'crate_jax[text]', or give token "
                f"ids (.npy, .jsonl)."
            ) from error
        try:
            _TOKENIZERS[path] = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # its errors have no type of their own
            raise ConfigError(f"{path} cannot be read as a tokenizer: {error}.") from error
        _TOKENIZERS[path].no_truncation()
        _TOKENIZERS[path].no_padding()
    return _TOKENIZERS[path]


def _random(length, texts, vocab, seed):
    """Texts that begin with id 0 and go on with ids of the lower half, or of the upper."""
    rng = np.random.default_rng(seed)
    domains = []
    for name, low, high in (("lower", 1, vocab // 2), ("upper", vocab // 2, vocab)):
        tokens = rng.integers(low, high, size=(texts, length), dtype=np.int32)
        tokens[:, 0] = 0
        domains.append(Domain(name, tokens))
    return domains
