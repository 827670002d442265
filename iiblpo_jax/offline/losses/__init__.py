"""Losses on cases by name, a small file each."""
