"""The worker's main process: raise the stop flag, renew the lease, sweep, and refuse messages while stopping."""
