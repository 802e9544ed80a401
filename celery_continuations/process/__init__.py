"""What a worker's main process and its pool processes share."""
