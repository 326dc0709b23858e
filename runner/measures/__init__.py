"""Measuring an edited model: model in, records out."""
