"""Exact readers of the world's pictures: what takes the place of learned judges."""
