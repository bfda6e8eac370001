"""Scorers that compare CLIP's features of a picture with those of its prompt, or rate them."""
