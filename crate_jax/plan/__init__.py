"""What a run would need and take on a machine that is not here: ``python -m crate_jax.plan``.

``topology`` names machines, ``chips`` says what their vendors publish. ``compile`` builds the train
step of a config, the loop's own, for a TPU; ``hlo`` reads what came out. ``estimate`` says by
formula what no compiler was asked for. ``roofline`` makes times of either; ``search``
tries settings, ``report`` tells.
"""
