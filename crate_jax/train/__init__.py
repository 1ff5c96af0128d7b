"""The one loop for every system, and what it needs: checkpoints, metrics, progress."""
