"""Speed and memory, measured side by side: ``python -m crate_jax.bench``."""
