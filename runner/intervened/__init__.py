"""`IntervenedModel`, and what it does with text: scoring, decoding, rollouts."""
