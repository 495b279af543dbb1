"""Questions about the program itself: config keys, choices by name, the state of this machine."""
