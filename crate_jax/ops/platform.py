"""The platform that a computation is for, where the fastest way to write it depends on that."""

import jax


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: of the mesh that is set, which need not be here, or of JAX."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform
