"""What attention sinks, value drains and residual peaks a pretrained language model has.

    python -m crate_jax.main --config configs/extreme_tokens/llm_report.py --workdir runs/report \\
        --config.checkpoint=DIR --config.tokens=wiki=wiki.npy,code=code.jsonl

Section 3 of "Active-Dormant Attention Heads" (arXiv 2410.13835) for any Llama, OLMo, OLMo-2 or
GPT-2. Into the workdir go ``results.json`` (means by domain, labels, effects), ``statistics.npz``
(all numbers by text), ``figures/`` and ``report.html``.
"""

from crate_jax.studies.llm_report.settings import Settings, check
from crate_jax.studies.llm_report.study import run

__all__ = ["Settings", "check", "run"]
