"""The losses of docs/math.md as functions of tensors: they know no network, data or trainer."""
