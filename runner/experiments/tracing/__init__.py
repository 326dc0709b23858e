"""Tracing: where in a model an answer comes from, by states of one run put into another."""
