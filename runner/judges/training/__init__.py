"""Judges that are fitted or fine-tuned, the labels for it, and how far a judge agrees with labels."""
