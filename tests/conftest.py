"""Settings of all tests: the same Hypothesis examples each time, no network, few threads."""

from __future__ import annotations

import os

from hypothesis import settings

# Read when the libraries load, so before any test module does.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("orch", deadline=None, derandomize=True)
settings.load_profile("orch")
