"""Every crash point of the real code, in one process over a simulated broker, result backend and clock."""
