"""Making specialists: tokenizer, base, adapters, and the cards that say how good they are."""
