"""Speed and memory, measured side by side in one run.

    python -m crate_jax.bench [step] --model crate_alpha --variant B/16     ways to run one step
    python -m crate_jax.bench attention --tokens 257                        implementations
    python -m crate_jax.bench ista                                          formulations
    python -m crate_jax.bench peers --torch-python PATH                     the same model elsewhere
    python -m crate_jax.bench input --source tfds:NAME                      the input pipeline

``--help`` after a word tells its options. Only ratios of one run are worth comparing.
"""

import importlib
import sys

BENCHES = {
    "step": "crate_jax.bench.step",
    "attention": "crate_jax.bench.attention",
    "ista": "crate_jax.bench.ista",
    "peers": "crate_jax.bench.peers",
    "input": "crate_jax.bench.input",
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
