"""Settings as frozen dataclasses: from a ConfigDict and back, checked, compared, and digested.

The machinery under ``crate_jax.config``, which has the settings of a run, and under the studies,
which have their own.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Callable, Mapping

import ml_collections


class ConfigError(ValueError):
    """What is wrong with a config, where, and what to write instead."""


def beyond_digest(default, *, per_host: bool = False):
    """A field that changes how a run is carried out, or when it gives up, and no number.

    Args:
      default: of the field.
      per_host: whether the processes of one run may each have their own.
    """
    return dataclasses.field(default=default, metadata={"digest": False, "per_host": per_host})


def added(default, *, digest: bool = True):
    """A field that came later: at its default it is left out of the digest.

    So runs from before keep their digests. The default must leave every number as it was.
    """
    return dataclasses.field(default=default, metadata={"digest": digest, "added": True})


def _optional_type(annotation):
    """``T`` of ``T | None``, else None."""
    if isinstance(annotation, types.UnionType):
        inner = [t for t in typing.get_args(annotation) if t is not type(None)]
        if len(inner) == 1:
            return inner[0]
    return None


def to_config_dict(section) -> ml_collections.ConfigDict:
    """The ConfigDict of a dataclass; an optional field that is None becomes a placeholder."""
    out = ml_collections.ConfigDict()
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif isinstance(value, Mapping):
            value = ml_collections.ConfigDict(dict(value))
        elif value is None:
            value = ml_collections.config_dict.placeholder(_optional_type(hints[field.name]))
        out[field.name] = value
    return out


def nearest(name: str, valid) -> str:
    """``; did you mean 'x'? Valid: ...``, for the end of an error about ``name``."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Valid: {', '.join(valid)}."


def section(cls, plain: Mapping, path: str):
    """An instance of the dataclass ``cls`` from a plain dict.

    Args:
      cls: a frozen dataclass; fields may be dataclasses themselves.
      plain: its fields by name; those left out keep their defaults.
      path: how an error names the section, ``config.train`` say.

    Raises:
      ConfigError: on an unknown key, with the nearest valid one, or a value of the wrong type.
    """
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{path} is a section of settings; got {plain!r}.")
    hints = typing.get_type_hints(cls)
    for key in plain:
        if key not in hints:
            raise ConfigError(f"{path}.{key} is not a setting{nearest(key, hints)}")
    return cls(
        **{key: check_type(hints[key], value, f"{path}.{key}") for key, value in plain.items()}
    )


def check_type(annotation, value, path: str):
    """``value`` as an annotation has it: whole numbers for each other, lists as tuples.

    Raises:
      ConfigError: ``path`` must be what it is not.
    """
    if dataclasses.is_dataclass(annotation):
        return section(annotation, value, path)
    optional = _optional_type(annotation)
    if optional is not None:
        return None if value is None else check_type(optional, value, path)
    origin = typing.get_origin(annotation)
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{path} must be a list; got {value!r}.")
        kinds = typing.get_args(annotation)
        if Ellipsis not in kinds and len(value) != len(kinds):
            raise ConfigError(f"{path} must have {len(kinds)} entries; got {value!r}.")
        return tuple(check_type(kinds[0], v, path) for v in value)
    if origin is not None:  # the model's mapping: models.create checks it
        return _plain(value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, annotation) or (annotation is int and isinstance(value, bool)):
        raise ConfigError(f"{path} must be {annotation.__name__}; got {value!r}.")
    return value


def _plain(value):
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return tuple(_plain(v) for v in value) if isinstance(value, (list, tuple)) else value


def check_ranges(config, ranges, path: str = "config") -> None:
    """Raises about the first setting that is not allowed.

    Args:
      config: a dataclass of settings.
      ranges: tuples of what is allowed, its test, and ``{section: names}``, see ``config``;
        the section "" is the dataclass itself.
      path: how an error names it.
    """
    for allowed, test, sections in ranges:
        for section, names in sections.items():
            part = getattr(config, section) if section else config
            for name in names:
                value = getattr(part, name)
                if value is not None and not test(value):
                    where = ".".join(filter(None, (path, section, name)))
                    raise ConfigError(f"{where} must be {allowed}; got {value!r}.")


def as_dict(config) -> dict:
    """Plain nested dict of a config or of one section, for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(old: Mapping, new: Mapping, path: str = "config") -> list[str]:
    """One line for each key at which two plain dicts differ, ``config.a.b: old -> new``."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{path}.{key}")
        elif a != b:
            lines.append(f"{path}.{key}: {a!r} -> {b!r}")
    return lines


def numeric_part(config, *, whole: bool = False) -> dict:
    """The part of a config, or of a study's settings, that decides its numbers, as a plain dict.

    A section of one task (``metadata={"system": NAME}``) counts where that is ``config.system``.

    Args:
      config: a dataclass of settings.
      whole: keep fields that are :func:`added` and at their defaults.
    """

    task = getattr(config, "system", None)

    def wanted(field, value):
        metadata = field.metadata
        if not metadata.get("digest", True) or metadata.get("system", task) != task:
            return False
        return whole or not metadata.get("added", False) or value != field.default

    return _part(config, wanted)


def common_settings(config) -> dict[str, str]:
    """The settings that all processes of a run must share, ``{"config.train.steps": "800"}``."""
    flat = {}

    def spread(value, path):
        if isinstance(value, Mapping) and value:
            for key, part in value.items():
                spread(part, f"{path}.{key}")
        else:
            flat[path] = json.dumps(value)

    spread(_part(config, lambda field, _: not field.metadata.get("per_host", False)), "config")
    return flat


def _part(config, wanted: Callable) -> dict:
    """The fields, nested, that are ``wanted`` by their value, as a plain dict."""

    def keep(section):
        out = {}
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if wanted(field, value):
                out[field.name] = keep(value) if dataclasses.is_dataclass(value) else value
        return out

    return json.loads(json.dumps(keep(config)))


def digest(config) -> str:
    """Twelve hex digits that name the numbers of a run."""
    text = json.dumps(numeric_part(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
