"""What a model shows while it runs: projections, screening, chat."""
