"""Synthetic, labelled examples for the demonstration specialists, made from nothing."""
