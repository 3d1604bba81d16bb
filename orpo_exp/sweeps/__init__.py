"""Sweeps: their points, and what is read back from their folders. See the modules."""
