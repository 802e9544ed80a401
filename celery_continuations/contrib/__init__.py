"""What connects continuable tasks with other software.  Nothing of it is imported unless you do."""
