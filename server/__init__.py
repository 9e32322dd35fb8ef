"""The specialist fleet: a gateway in front of many small fine-tuned models."""

__version__ = "0.1.0"
