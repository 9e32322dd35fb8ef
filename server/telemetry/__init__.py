"""What is counted, timed and paid for."""
