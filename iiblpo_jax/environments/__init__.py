"""What answers a policy between its turns: one small module an environment. Start with `interface.py`.

Nothing here imports JAX: worker processes import this package too.
"""
