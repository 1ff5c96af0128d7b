"""White-box representation learning in JAX: CRATE and its family, one trainer for all of them."""
