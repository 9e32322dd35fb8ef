"""Tests of what callers and operators see over HTTP."""
