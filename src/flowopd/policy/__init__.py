"""Velocity models, their adapters, and pictures from them."""
