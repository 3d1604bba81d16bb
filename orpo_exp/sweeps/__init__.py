"""Sweeps: the launchers that run them, and what is read back from their folders. See the modules."""
