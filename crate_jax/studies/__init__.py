"""Whole experiments that are not minibatch training, by the name that their config files give.

A study is a module with

    Settings                        frozen dataclass; every field has a default; begins with
                                    ``study`` (its name here) and ``seed``
    check(settings)                 raises a ConfigError about the first thing wrong, before any
                                    compile
    run(settings, workdir, console) does the work and returns the exit code: 0, or EXIT_RESUME where
                                    a signal has stopped it and the same command goes on

A signal ends a study at any point unless it installs a handler of its own; so files appear whole
(written aside and renamed), and what was done is found again or done again.

A config file of a study starts from :func:`default` where one of a training run starts from
``config.default``.
"""

from types import ModuleType

from ml_collections import ConfigDict

from crate_jax import config as configs
from crate_jax.config import ConfigError, nearest
from crate_jax.studies import (
    ablation,
    flatnet,
    games,
    landscape,
    landscape_data,
    llm_report,
    stability,
    theory,
    transcription,
)

STUDIES: dict[str, ModuleType] = {
    "ablation": ablation,
    "flatnet": flatnet,
    "games": games,
    "landscape": landscape,
    "landscape_data": landscape_data,
    "llm_report": llm_report,
    "stability": stability,
    "theory": theory,
    "transcription": transcription,
}
"""Name to module."""


def default(name: str) -> ConfigDict:
    """Every setting of a study with its default, for a config file to change."""
    return configs.to_config_dict(_find(name).Settings())


def resolve(raw: ConfigDict):
    """The frozen, checked settings of a study's ConfigDict.

    Raises:
      ConfigError: on an unknown study or key, a value of the wrong type, or whatever the study
        itself finds wrong.
    """
    study = _find(raw.study)
    settings = configs.section(study.Settings, raw.to_dict(), "config")
    study.check(settings)
    return settings


def run(settings, workdir, console) -> int:
    """Carries a study out; its exit code."""
    return _find(settings.study).run(settings, workdir, console)


def _find(name: str) -> ModuleType:
    if name not in STUDIES:
        raise ConfigError(f"there is no study {name!r}{nearest(str(name), STUDIES)}")
    return STUDIES[name]
