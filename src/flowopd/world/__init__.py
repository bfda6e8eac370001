"""The built-in world: a small model that draws shapes and words, and exact readers of what it drew.

It is for learning, for tests and for research on the algorithms in minutes on two CPU cores. It
makes no claim about any large model.
"""
