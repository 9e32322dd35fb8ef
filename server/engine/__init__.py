"""What every vLLM process of a worker loads: cures for faults of the engine's CPU build."""
