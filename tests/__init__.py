"""Tests of the specialist fleet; folders mirror `server`."""

from hypothesis import settings

# A busy machine is no fault of the code: no test here is about how long an example takes.
settings.register_profile("fleet", deadline=None)
settings.load_profile("fleet")
