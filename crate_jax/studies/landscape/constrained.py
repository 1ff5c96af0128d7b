"""The constrained problem behind the regularised one: ``max R - R^c`` at ``||Z_k||_F^2 = N_k``.

Its theorem (MCR^2, Yu et al. 2020): where the dimension has room for all classes and
``eps^4 < min_k N_k d^2 / (N d_k^2)``, classes are orthogonal, each of full rank ``d_k`` and, but
for the last one, of equal singular values. The condition says that ``N_k/d_k`` lies where ``h_k``
is concave, and with all of them equal the optimum is the isotropic value. Directions can be lost
on the way here, too, since zero keeps what is small: ascent ends at the isotropic value of the
ranks that are left.
"""

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.interpret import subspaces
from crate_jax.ops import rate_landscape as forms
from crate_jax.ops.regularised_rate import split_classes
from crate_jax.studies.claims import Claim
from crate_jax.studies.landscape.problem import Problem

EXAMPLE = ((4, 6), 12, 0.5)
"""Sizes, dimension and distortion squared: ``d_k = N_k`` fit beside each other."""

STARTS, STEPS = 16, 4000


def check_constrained(rng: np.random.Generator) -> list[Claim]:
    """Projected gradient ascent from random starts against the isotropic optimum."""
    sizes, d, eps_sq = EXAMPLE
    problem = Problem(sizes, d, eps_sq, 0.0)

    def project(Z):
        blocks = split_classes(Z, sizes)
        scaled = (np.sqrt(len(Z_k)) * Z_k / jnp.linalg.norm(Z_k) for Z_k in blocks)
        return jnp.concatenate(list(scaled))

    def advance(Z, _):
        return project(Z + problem.gradient(Z) / problem.alpha), None

    def climb(Z):
        return jax.lax.scan(advance, project(Z), length=STEPS)[0]

    ends = np.asarray(jax.jit(jax.vmap(climb))(rng.standard_normal((STARTS, problem.N, d))))
    values = np.asarray(jax.jit(problem.value)(ends))
    law = {"eps_sq": eps_sq}
    best = forms.isotropic_rate_reduction(forms.isotropic_ranks(sizes, d, **law), sizes, d, **law)
    off, apart, uneven = 0.0, 0.0, 0.0
    for Z, value in zip(ends, values, strict=True):
        spectra = problem.spectra(Z)
        ranks = tuple(subspaces.numerical_rank(s) for s in spectra)
        off = max(off, abs(value - forms.isotropic_rate_reduction(ranks, sizes, d, **law)))
        apart = max(apart, subspaces.max_cosine_between(Z, problem.labels, problem.K))
        for s, n, r in zip(spectra, sizes, ranks, strict=True):
            uneven = max(uneven, float(np.abs(s[:r] / np.sqrt(n / r) - 1).max()))
    return [
        Claim("constrained", "at ||Z_k||^2 = N_k ascent ends isotropic, in the ranks it keeps",
              "R - R^c = isotropic value of its ranks", float(off), 1e-8),
        Claim("constrained", "with equal singular values", "s / sqrt(N_k/r_k) = 1", uneven, 1e-6),
        Claim("constrained", "in orthogonal classes", "|cos| of rows of two classes = 0", apart,
              1e-6),
        Claim("constrained", "the best of the starts keeps the best ranks",
              "max (R - R^c) = isotropic optimum", float(abs(values.max() - best)), 1e-8),
    ]  # fmt: skip
