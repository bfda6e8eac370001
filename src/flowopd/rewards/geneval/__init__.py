"""GenEval: whether the objects, numbers, colours and places that a prompt names are there."""
