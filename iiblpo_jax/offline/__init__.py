"""Learning from responses that are there: demonstrations."""
