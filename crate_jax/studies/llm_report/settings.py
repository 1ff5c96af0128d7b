"""Settings of the report on a language model, and what in them can be wrong."""

import dataclasses
import re

from crate_jax.config import ConfigError, beyond_digest, check_ranges, nearest

DTYPES = ("float32", "bfloat16")
CHOICES = ("sink", "difference", "all", "none")

_RANGES = (
    ("at least 1", lambda x: x >= 1, {"": ("texts", "batch_size", "variants")}),
    ("at least 4", lambda x: x >= 4, {"": ("length",)}),
    ("at least 0", lambda x: x >= 0, {"": ("max_heads",)}),
    ("positive", lambda x: x > 0, {"": ("memory_limit",)}),
    ("from 0 to 1", lambda x: 0 <= x <= 1, {"": ("gate_row", "gate_column")}),
)

_HEAD = re.compile(r"L(\d+)H(\d+)")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured of which model on which texts.

    Attributes:
      seed: of ``planted`` checkpoints and ``random`` tokens.
      checkpoint: directory with ``config.json`` and safetensors, or ``planted`` for a tiny model
        that is made up, see ``planted.py``.
      tokens: texts by domain, ``wiki=wiki.npy,code=code.jsonl``; see ``crate_jax.data.tokens``.
      tokenizer: ``tokenizer.json`` for texts that are no ids yet; None is the checkpoint's.
      texts: that are taken of each domain.
      length: tokens a text.
      batch_size: texts at once.
      dtype: of weights and computation; statistics are float32 or better.
      olmo_legacy: sink logits against the mean of all keys, the unseen future included, as the
        paper's code has them for OLMo; otherwise against the seen ones but the query's own.
      dormant: a head is dormant on a domain where its mean attention to the first token is above
        this, and active otherwise.
      sink: mean attention to the first token above which a head counts in the sink rate.
      heads: the heads whose removal is measured: ``sink`` (those of the largest sink score),
        ``difference`` (of the largest difference between domains), ``all``, ``none``, or a list
        such as ``L16H25,L24H0``.
      max_heads: that ``sink`` and ``difference`` choose.
      sublayers: the layers whose attention and whose MLP are removed: ``all``, ``none`` or a list
        such as ``0,1,2``.
      gate_row, gate_column: with both, all heads of all layers that are sink heads on a text are
        removed together, and in another network look at the first token alone: those whose mean row
        entropy is below the one and whose largest column entropy is above the other, see
        ``ops.attention_entropy``.
      variants: of the network that run at once.
      revisions: checkpoints of the training, in order: directories with commas, or one directory
        that holds them. Their names should hold their steps, as in ``step1000-tokens4B``.
      dynamics_layer: whose statistics are shown over the revisions, and after which the first
        token's residual is measured in the changed networks; None is three quarters up.
      memory_limit: GiB a device that the report may take; None is what the device has.
    """

    study: str = "llm_report"
    seed: int = 0
    checkpoint: str = ""
    tokens: str = ""
    tokenizer: str | None = None
    texts: int = 32
    length: int = 64
    batch_size: int = beyond_digest(8)
    dtype: str = "float32"
    olmo_legacy: bool = False
    dormant: float = 0.5
    sink: float = 0.3
    heads: str = "sink"
    max_heads: int = 8
    sublayers: str = "all"
    gate_row: float | None = None
    gate_column: float | None = None
    variants: int = beyond_digest(8)
    revisions: str = ""
    dynamics_layer: int | None = None
    memory_limit: float | None = beyond_digest(None)

    @property
    def gate(self) -> tuple[float, float] | None:
        """``gate_row`` and ``gate_column``, or None."""
        return None if self.gate_row is None else (self.gate_row, self.gate_column)


def check(settings: Settings) -> None:
    """Raises a ConfigError about the first setting that is wrong in itself."""
    check_ranges(settings, _RANGES)
    for name in ("dormant", "sink"):
        if not 0 < getattr(settings, name) < 1:
            raise ConfigError(
                f"config.{name} must lie between 0 and 1; got {getattr(settings, name)}."
            )
    if settings.dtype not in DTYPES:
        raise ConfigError(f"config.dtype={settings.dtype!r}{nearest(settings.dtype, DTYPES)}")
    if (settings.gate_row is None) != (settings.gate_column is None):
        raise ConfigError("config.gate_row and config.gate_column go together; give both.")
    parse_heads(settings.heads)
    parse_layers(settings.sublayers)


def parse_heads(text: str) -> list[tuple[int, int]] | None:
    """``L16H25,L24H0`` as pairs (layer, head); None for a word of ``CHOICES``."""
    if text in CHOICES:
        return None
    matches = [_HEAD.fullmatch(part.strip()) for part in text.split(",")]
    if not all(matches):
        raise ConfigError(
            f"config.heads={text!r}{nearest(text, CHOICES)} Or list heads: L16H25,L24H0."
        )
    return [(int(m[1]), int(m[2])) for m in matches]


def parse_layers(text: str) -> list[int] | None:
    """``0,1,2`` as numbers; None for ``all``, and nothing for ``none``."""
    if text in ("all", "none"):
        return None if text == "all" else []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"config.sublayers={text!r}: write all, none or layers such as 0,1,2.")
    return [int(part) for part in parts]
