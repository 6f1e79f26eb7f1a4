"""Property tests draw the same examples each time, and no clock judges them."""

from hypothesis import settings

settings.register_profile("orch", deadline=None, derandomize=True)
settings.load_profile("orch")
