"""Every crash point of the real code, in one process with a simulated broker, result backend and clock."""
