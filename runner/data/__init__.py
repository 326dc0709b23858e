"""What people hand in: texts, conversations, pairs, preferences, traits, questions."""
