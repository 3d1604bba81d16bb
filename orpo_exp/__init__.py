"""Preference optimisation experiments: ORPO, its lambda variants and DPO-style baselines, composed with Hydra."""
