"""The control plane: keeps the local vLLM workers of `fleet.toml` alive, and nothing else."""
