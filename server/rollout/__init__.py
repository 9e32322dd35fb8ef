"""Which variant a request falls to."""
