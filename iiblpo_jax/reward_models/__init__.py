"""Reward models of preferences: pairs, the fit of an information-bottlenecked Bradley-Terry model, and its storage."""
