"""The specialist fleet: a gateway in front of many small fine-tuned models."""
