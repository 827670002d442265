"""Verifiable rewards: one small module a verifier, a pool of worker processes, and the `Scorer` that joins them.

Nothing here imports JAX: the worker processes import this package too.
"""
