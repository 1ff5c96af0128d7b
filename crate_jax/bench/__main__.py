"""Speed and memory, measured side by side in one run.

    python -m crate_jax.bench [step] --model crate_alpha --variant B/16     ways to run one step
    python -m crate_jax.bench attention --tokens 257                        implementations
    python -m crate_jax.bench ista                                          formulations
    python -m crate_jax.bench donation                                      the state kept or not
    python -m crate_jax.bench stalls                                        metrics read at once
    python -m crate_jax.bench cache                                         compiling again
    python -m crate_jax.bench peers --torch-python PATH                     the same model elsewhere
    python -m crate_jax.bench input --source tfds:NAME                      the input pipeline
    python -m crate_jax.bench sweep --torch-python PATH                     seeds under one vmap
    python -m crate_jax.bench games --torch-python PATH                     a sequential game
    python -m crate_jax.bench landscape                                     starts under one vmap
    python -m crate_jax.bench coding_rates                                  rates of many classes
    python -m crate_jax.bench flatnet --torch-python PATH                   FlatNet's construction
    python -m crate_jax.bench ladder                                        all of these in little

``--help`` after a word tells its options. Only ratios of one run are worth comparing.
"""

import importlib
import sys

BENCHES = {
    "step": "crate_jax.bench.step",
    "attention": "crate_jax.bench.attention",
    "ista": "crate_jax.bench.ista",
    "donation": "crate_jax.bench.donation",
    "stalls": "crate_jax.bench.stalls",
    "cache": "crate_jax.bench.cache",
    "peers": "crate_jax.bench.peers",
    "input": "crate_jax.bench.input",
    "sweep": "crate_jax.bench.sweep",
    "games": "crate_jax.bench.games",
    "landscape": "crate_jax.bench.landscape",
    "coding_rates": "crate_jax.bench.coding_rates",
    "flatnet": "crate_jax.bench.flatnet",
    "ladder": "crate_jax.bench.ladder",
}


def main(argv: list[str]) -> int:
    """Runs the bench that the first word names, ``step`` where options come first."""
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("step", argv)
    if name not in BENCHES:
        print(f"there is no bench {name!r}; write one of {', '.join(BENCHES)}.", file=sys.stderr)
        return 2
    return importlib.import_module(BENCHES[name]).main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
