"""Tests of what stands between the gateway and its workers."""
