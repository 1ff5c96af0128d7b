"""CTRL-MSP: a sequential game that finds several subspaces at once (arXiv 2206.09120).

    python -m crate_jax.main --config configs/ctrl/msp.py --workdir runs/msp
    python -m crate_jax.main --config configs/ctrl/msp.py:long --workdir runs/msp_long
    python -m crate_jax.main --config configs/ctrl/msp.py:preset=fig3 ... --config.data.data_dir=...

Presets, by the figures of the paper and of the released code: ``fig1`` (the main experiment),
``fig2`` (noise), ``fig3`` and ``fig4`` (MNIST, linear players and networks; ``tfds:mnist``),
``digits`` and ``digits_network`` (scikit-learn's instead, no download), ``d9`` (d_z), ``d10``
(noise), ``d11`` (baselines). Of the conference version: ``incoherent``, ``correlated``,
``five_classes``, ``five_correlated``, ``conference_noise``, ``conference_eps``,
``conference_baselines``. And ``outliers`` and ``label_corruption``, variants that its code offers.
``bug`` trains the GANs as they were released, see ``studies.games.baselines``.

Expected: the published settings stop before the equilibrium (Q 3.0 to 3.6 by batch, C about -1e-4,
4 of 10 claims); ``long`` plays whole batches with falling rates, and with a leader that the
projection does not bias, until all ten hold (Delta R 3.9618639 of 3.9618639).
Cost: on two CPU cores, one of them busy, 13 s (5 s of it play), ``long`` 80 s, ``d11`` 75 s,
``fig3`` 4 minutes for each 8,000 images; ``fig4`` and the conference's were not run. No download
but for ``fig3`` and ``fig4``.
"""

from crate_jax import studies
from crate_jax.recipe import choose, parse_study_arg

LAW = {"sizes": (500, 500, 500), "dims": (3, 4, 5), "ambient": 50, "amount": 0.1}


INCOHERENT = {"mixing": "perturb", "amount": 1e6}
CORRELATED = {"mixing": "perturb", "amount": 0.1}
FIVE = {"sizes": (500,) * 5, "dims": (3, 4, 5, 6, 7)}

PRESETS = {
    "fig1": {},
    "fig2": {"data": {"law": {"noise": 1e-2}}},
    "fig3": {
        "data": {"source": "tfds:mnist"},
        "players": {"features": 150},
        "play": {"batch": 200, "epochs": 1, "inner_steps": 200},
    },
    "fig4": {
        "methods": ("ctrl_fcnn",),
        "data": {"source": "tfds:mnist"},
        "players": {"features": 150, "width": 150},
        "play": {"batch": 200, "epochs": 1, "network_inner_steps": 200},
    },
    "digits": {
        "data": {"source": "digits"},
        "play": {"batch": 200, "epochs": 8, "inner_steps": 200},
    },
    "digits_network": {
        "methods": ("ctrl_fcnn",),
        "data": {"source": "digits"},
        "play": {"batch": 200, "epochs": 8, "network_inner_steps": 200},
    },
    "d9": {"vary": "features", "over": (20.0, 30.0, 40.0, 60.0)},
    "d10": {"vary": "noise", "over": (1e-6, 1e-4, 1e-2, 1.0)},
    "d11": {"methods": ("ctrl", "ctrl_fcnn", "infogan", "cgan", "cvae", "pca")},
    "incoherent": {"data": {"law": INCOHERENT}},
    "correlated": {"data": {"law": CORRELATED}},
    "five_classes": {"data": {"law": FIVE | INCOHERENT}},
    "five_correlated": {"data": {"law": FIVE | CORRELATED}},
    "conference_noise": {
        "data": {"law": CORRELATED},
        "vary": "noise",
        "over": (0.0, 0.01, 0.025, 0.05, 0.075, 0.1),
    },
    "conference_eps": {
        "data": {"law": CORRELATED | {"noise": 0.01}},
        "vary": "eps_sq",
        "over": (1.0, 0.75, 0.5, 0.25),
    },
    "conference_baselines": {
        "data": {"law": CORRELATED | {"noise": 0.01}},
        "methods": ("ctrl", "infogan", "cgan", "cvae", "pca"),
        "baselines": {"width": 100, "layers": 10, "code": 15, "epochs": 1000},
    },
    "outliers": {
        "data": {"law": {"outlier_energy": 1.0}},
        "vary": "outliers",
        "over": (0.01, 0.05, 0.1),
    },
    "label_corruption": {"vary": "label_corruption", "over": (0.01, 0.05, 0.1)},
}

LONG = {
    "batch": 0, "epochs": 600, "inner_steps": 200, "decay": True, "leader": "scalar_adam",
}  # fmt: skip

SMOKE = {
    "data": {"source": "subspaces", "law": {"sizes": (60, 60), "dims": (2, 3), "ambient": 10}},
    "players": {"features": 8},
    "play": {"batch": 30, "epochs": 2, "inner_steps": 20, "network_inner_steps": 10},
    "responses": {"follower_steps": 20, "leader_steps": 20},
    "baselines": {"epochs": 1, "layers": 2, "width": 8},
}

VARIED = {"features": (8.0, 12.0)}
"""What varies at the smoke size, where a preset's own values do not fit; else its first two."""


def get_config(arg=None):
    """Arguments: ``preset`` (a key of ``PRESETS``), ``long``, ``bug``, ``smoke``."""
    arg = parse_study_arg(arg, preset="fig1", long=False, bug=False)
    config = studies.default("games")
    config.data.law.update(LAW)
    config.update(choose("preset", arg.preset, PRESETS))
    if arg.long:
        config.play.update(LONG)
    config.baselines.paper_baseline_bug = arg.bug
    if arg.smoke:
        config.update(SMOKE)
        config.over = VARIED.get(config.vary, config.over[:2])
    return config
