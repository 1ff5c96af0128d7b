"""Where arrays live: the mesh of devices, which axis splits what, and how arrays get there."""
