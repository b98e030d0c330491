"""Runs looked back on: their curves, their comparison, and the pictures and pages made of them."""
