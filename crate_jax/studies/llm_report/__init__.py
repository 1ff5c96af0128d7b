"""What attention sinks, value drains and residual peaks a pretrained language model has.

    python -m crate_jax.main --config configs/extreme_tokens/llm_report.py --workdir runs/report \\
        --config.checkpoint=DIR --config.tokens=wiki=wiki.npy,code=code.jsonl

Section 3 of "Active-Dormant Attention Heads" (arXiv 2410.13835) for any Llama, OLMo, OLMo-2 or
GPT-2. Into the workdir go ``results.json`` (means by domain, labels, effects), ``statistics.npz``
(all numbers by text, column masses of every key by domain, and every head of every revision),
``figures/`` and ``report.html``. A report that was stopped goes on with the same command: what lies
in ``parts/`` (statistics, changed networks, each revision) is not done again.
"""

from crate_jax.studies.llm_report.settings import Settings, check
from crate_jax.studies.llm_report.study import run

__all__ = ["Settings", "check", "run"]
