"""What a user asks of the program itself: config keys, choices by name, the state of this machine."""
