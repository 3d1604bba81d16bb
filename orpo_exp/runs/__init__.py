"""A run's folder: what a rank is told to run, config.yaml and result.json, what has become of a run, where it goes on.

Below sweeps, launchers and experiment: this room knows none of them.
"""
