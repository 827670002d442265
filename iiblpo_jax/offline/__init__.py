"""Learning from responses that are there: demonstrations, and pairs of which one is preferred."""
