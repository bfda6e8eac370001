"""The commands, one a module: options into a configuration, and the call that does the work."""
