"""One trainer for every algorithm, its checkpoints and its records."""
