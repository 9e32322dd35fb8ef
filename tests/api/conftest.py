"""The event loop that the gateway runs on in production."""

from __future__ import annotations

import pytest
import uvloop


@pytest.fixture(scope="session")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """Make the tests of this room run on uvloop."""
    return uvloop.EventLoopPolicy()
