"""Attention sinks, value drains and residual peaks of a pretrained Llama, OLMo, OLMo-2 or GPT-2.

    python -m crate_jax.main --config configs/extreme_tokens/llm_report.py --workdir runs/report \\
        --config.checkpoint=DIR --config.tokens=wiki=wiki.npy,code=code.jsonl

DIR holds ``config.json`` and safetensors, as downloaded from Hugging Face. Tokens are ids
(``.npy``, ``.jsonl``), or text (``.jsonl``, ``.txt``) through the checkpoint's ``tokenizer.json``;
each file is a domain. ``--config.revisions=DIR`` adds curves over the revisions of a training run;
``--config.gate_row=0.3 --config.gate_column=0.9`` takes out all sink heads at once, told by their
entropies. Stopped, the same command goes on: what is finished is not done again.

    python -m crate_jax.main --config configs/extreme_tokens/llm_report.py:smoke --workdir runs/tiny

makes a tiny Llama with a planted sink, drain and peak, and needs no download.

Expected: a row a domain with loss, sink rate and dormant heads; ``report.html`` in the workdir.
Cost: two passes over the weights, of which the device holds a layer at a time; the memory is said
before it starts. ``:smoke`` takes about a quarter of a minute on two CPU cores.
"""

from crate_jax import studies
from crate_jax.recipe import parse_study_arg


def get_config(arg=None):
    """Arguments: ``smoke``."""
    arg = parse_study_arg(arg)
    config = studies.default("llm_report")
    if arg.smoke:
        config.update(
            checkpoint="planted", tokens="random", revisions="planted",
            texts=8, length=32, max_heads=4, variants=4,
        )  # fmt: skip
    return config
