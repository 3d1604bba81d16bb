"""Preference optimisation experiments: ORPO, its lambda variants and DPO-style baselines, composed with Hydra."""

import os

# Threads that wait for work sleep instead of spinning. Where something else needs a core too (another run of a sweep, a
# rank, a browser), spinning threads cost a training its speed. Read when torch is loaded, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
