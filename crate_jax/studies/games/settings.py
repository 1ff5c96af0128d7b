"""Settings of a game, what is wrong with them, and the runs that they ask for."""

import dataclasses

from crate_jax import config as configs
from crate_jax.config import ConfigError, nearest
from crate_jax.data import subspaces

GAMES = ("msp", "ssp")

METHODS = ("ctrl", "ctrl_fcnn", "pca", "vae", "cvae", "gan", "cgan", "infogan")
"""What is run on the same samples: the game of linear players and of networks, and baselines."""

UNSUPERVISED = ("ctrl", "pca", "vae", "gan")
"""Those that need no classes."""

SOURCES = ("subspaces", "digits", "tfds")

MANIFOLDS = ("official", "stiefel")

LEADERS = ("adam", "scalar_adam")


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the samples come from.

    Attributes:
      source: ``subspaces`` (see ``law``), ``digits`` of scikit-learn (8 x 8 pixels in [0, 1]) or
        ``tfds:mnist``, say: flattened images in [0, 1].
      data_dir: root of the TFDS files; None means TFDS's own default.
      test: most images of the test split that are evaluated and drawn; 0 means all. Heat maps have
        as many rows.
      law: of ``subspaces``.
    """

    source: str = "subspaces"
    data_dir: str | None = configs.beyond_digest(None)
    test: int = 2000
    law: subspaces.SubspaceLaw = dataclasses.field(default_factory=subspaces.SubspaceLaw)


@dataclasses.dataclass(frozen=True)
class Players:
    """The two players.

    Attributes:
      features: dimension d_z.
      eps_sq: distortion squared of every rate.
      layers: linear layers of a network, ReLU between them; its features have unit length.
      width: between them.
      manifold: which linear players of ``ssp`` make Riemannian steps. ``official``: the encoder
        where d_z >= d_x and the decoder where d_z < d_x; the other is a Euclidean parameter that is
        projected, since the released code loses its tag in a transpose. ``stiefel``: both.
    """

    features: int = 40
    eps_sq: float = 1.0
    layers: int = 2
    width: int = 40
    manifold: str = "official"


@dataclasses.dataclass(frozen=True)
class Play:
    """How the game is played.

    Attributes:
      batch: samples a leader's step; 0 means all of them, and every batch the same.
      epochs: passes over the samples; of a whole batch a pass is one leader's step.
      inner_steps: the follower's steps after each of the leader's, of linear players.
      network_inner_steps: of networks.
      leader: optimizer of the linear encoder of ``msp``: ``adam``, as published, or
        ``scalar_adam``, whose second moment is one number. The projection makes Adam's entries' own
        scales stop short of the maximum, see ``players.scale_by_scalar_adam``.
      leader_rate: learning rate of the encoder.
      follower_rate: of the decoder.
      decay: whether both fall to 0 along a cosine over the leader's steps.
      shuffle: whether the samples are permuted in every epoch; None means as the released code
        does, for ``msp`` alone.
      save_seconds: between two saves of the state, from which a stopped game goes on.
    """

    batch: int = 50
    epochs: int = 2
    inner_steps: int = 1000
    network_inner_steps: int = 100
    leader: str = "adam"
    leader_rate: float = 1e-2
    follower_rate: float = 1e-3
    decay: bool = False
    shuffle: bool | None = None
    save_seconds: float = configs.beyond_digest(20.0)


@dataclasses.dataclass(frozen=True)
class Responses:
    """Best responses to the end of a linear game, found by going on alone, with the rate falling.

    Attributes:
      follower_steps: of the decoder, the encoder held; 0 leaves the search out.
      leader_steps: of the encoder against a follower that always answers perfectly.
      follower_rate: of the decoder at the start.
      leader_rate: of the encoder at the start.
    """

    follower_steps: int = 2000
    leader_steps: int = 1000
    follower_rate: float = 1e-3
    leader_rate: float = 1e-2


@dataclasses.dataclass(frozen=True)
class Baselines:
    """The networks that the game is compared with.

    Attributes:
      layers: hidden layers of each network.
      width: of a hidden layer.
      noise: dimension of a generator's noise.
      code: dimension of InfoGAN's code.
      learning_rate: of Adam, for every network.
      epochs: passes over the samples.
      paper_baseline_bug: whether the GANs are trained as the released code does, generators made to
        look fake and InfoGAN's class passed through softmax twice and its code drawn from [0, 1)
        when samples are asked for.
    """

    layers: int = 2
    width: int = 40
    noise: int = 40
    code: int = 10
    learning_rate: float = 1e-4
    epochs: int = 2
    paper_baseline_bug: bool = False


@dataclasses.dataclass(frozen=True)
class Settings:
    """A game on some samples, or several games that differ in one setting.

    Attributes:
      study: the name of this study.
      game: ``msp`` (several subspaces, with labels) or ``ssp`` (one, without).
      seed: of the samples, the starts and the order of the samples.
      vary: a setting that takes several values in turn, a key of :data:`VARIED`; "" for none.
      over: these values.
      methods: of :data:`METHODS`.
      precision: ``float32`` or ``float64``.
      data, players, play, responses, baselines: see there.
    """

    study: str = "games"
    game: str = "msp"
    seed: int = 1337
    vary: str = ""
    over: tuple[float, ...] = ()
    methods: tuple[str, ...] = ("ctrl",)
    precision: str = "float32"
    data: Data = dataclasses.field(default_factory=Data)
    players: Players = dataclasses.field(default_factory=Players)
    play: Play = dataclasses.field(default_factory=Play)
    responses: Responses = dataclasses.field(default_factory=Responses)
    baselines: Baselines = dataclasses.field(default_factory=Baselines)


VARIED = {
    "features": ("players", "features", int),
    "eps_sq": ("players", "eps_sq", float),
    "noise": ("data", "law", "noise", float),
    "outliers": ("data", "law", "outliers", float),
    "label_corruption": ("data", "law", "label_corruption", float),
    "ambient": ("data", "law", "ambient", int),
    "dim": ("data", "law", "dims", lambda value: (int(value),)),
}
"""What may vary: the path of the setting and its type; ``dim`` is that of a single subspace."""

WHOLE = ("features", "ambient", "dim")
"""Which of them are whole numbers."""

_RANGES = (
    (
        "at least 1", lambda x: x >= 1,
        {"players": ("features", "width"), "play": ("epochs", "inner_steps", "network_inner_steps"),
         "baselines": ("layers", "width", "noise", "code", "epochs")},
    ),
    ("at least 2", lambda x: x >= 2, {"players": ("layers",)}),
    (
        "at least 0", lambda x: x >= 0,
        {"": ("seed",), "data": ("test",), "play": ("batch", "leader_rate", "follower_rate"),
         "responses": ("follower_steps", "leader_steps", "follower_rate", "leader_rate"),
         "baselines": ("learning_rate",)},
    ),
    (
        "above 0", lambda x: 0 < x < float("inf"),
        {"players": ("eps_sq",), "play": ("save_seconds",)},
    ),
    (f"one of {', '.join(GAMES)}", lambda x: x in GAMES, {"": ("game",)}),
    ("float32 or float64", lambda x: x in ("float32", "float64"), {"": ("precision",)}),
    (f"one of {', '.join(LEADERS)}", lambda x: x in LEADERS, {"play": ("leader",)}),
    (f"one of {', '.join(MANIFOLDS)}", lambda x: x in MANIFOLDS, {"players": ("manifold",)}),
)  # fmt: skip
"""See ``config.check_ranges``."""


def check(settings: Settings) -> None:
    """Raises a ConfigError about the first setting that cannot be."""
    configs.check_ranges(settings, _RANGES)
    kind = settings.data.source.partition(":")[0]
    if kind not in SOURCES:
        raise ConfigError(f"config.data.source={settings.data.source!r}{nearest(kind, SOURCES)}")
    if settings.vary and settings.vary not in VARIED:
        raise ConfigError(f"config.vary={settings.vary!r}{nearest(settings.vary, VARIED)}")
    if bool(settings.vary) != bool(settings.over):
        raise ConfigError("set config.vary and config.over together.")
    if not settings.methods:
        raise ConfigError(f"config.methods is empty; name some of {', '.join(METHODS)}.")
    for method in settings.methods:
        if method not in METHODS:
            raise ConfigError(f"config.methods has {method!r}{nearest(method, METHODS)}")
    if len(set(settings.methods)) < len(settings.methods):
        raise ConfigError(f"config.methods has an entry twice: {', '.join(settings.methods)}.")
    _check_over(settings)
    for value, run in list_runs(settings):
        if value:
            configs.check_ranges(run, _RANGES)
        _check_run(run)


def _check_over(settings: Settings) -> None:
    """The values of the varied setting: whole numbers where it is one, none of them twice."""
    if settings.vary in WHOLE and any(value % 1 for value in settings.over):
        raise ConfigError(f"config.over must be whole numbers for {settings.vary!r}.")
    names = [name for name, _ in list_runs(settings)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"config.over has {twice[0]} twice; runs are told apart by six digits of the value."
        )


def _check_run(settings: Settings) -> None:
    """What one game asks for."""
    law, ssp = settings.data.law, settings.game == "ssp"
    subspaces.check(law)
    if ssp and (settings.data.source != "subspaces" or len(law.sizes) != 1):
        raise ConfigError(
            "config.game='ssp' is played on one subspace: set config.data.source='subspaces' and "
            "one entry in config.data.law.sizes and .dims."
        )
    if not ssp and settings.data.source == "subspaces" and len(law.sizes) < 2:
        raise ConfigError(
            "config.game='msp' wants two classes or more in config.data.law.sizes and .dims; of "
            "one subspace config.game='ssp' is played."
        )
    if ssp and set(settings.methods) - set(UNSUPERVISED):
        raise ConfigError(
            f"config.game='ssp' has no classes; config.methods may be {', '.join(UNSUPERVISED)}."
        )
    batch = settings.play.batch
    if settings.data.source == "subspaces" and batch > sum(law.sizes):
        raise ConfigError(
            f"config.play.batch={batch} is more than the {sum(law.sizes)} samples; write 0 for all."
        )


def list_runs(settings: Settings) -> list[tuple[str, Settings]]:
    """The value of the varied setting, as text, and the settings that have it; "" for one run."""
    if not settings.vary:
        return [("", settings)]
    *path, kind = VARIED[settings.vary]
    return [
        (f"{settings.vary}={value:g}", _replace(settings, path, kind(value)))
        for value in settings.over
    ]


def _replace(node, path, value):
    name, *rest = path
    inner = _replace(getattr(node, name), rest, value) if rest else value
    return dataclasses.replace(node, **{name: inner})
