"""Studies: stages that stand on each other, done once, resumed where they were stopped."""
