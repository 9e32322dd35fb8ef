"""Tests of what brings prompts to replicas."""
