"""From a prompt to a replica and back."""
