"""The worker's side: hearing the stop, watching, refusing while stopping."""
