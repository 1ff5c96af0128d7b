"""Linen blocks that two or more models use. ``x_BND``: batch, tokens, width; K heads of size P."""
