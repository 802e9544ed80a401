"""One execution of a task, in the process that runs it."""
