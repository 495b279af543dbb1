"""What each command does, from a config or a workdir to files: the only place where all rooms meet."""
