"""Harnesses that break things on purpose."""
