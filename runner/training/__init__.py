"""Training of localized edits on preferences: many experiments in one job, none of which touches another."""
