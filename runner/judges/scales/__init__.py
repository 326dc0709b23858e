"""What a verdict looks like: a file a scale, with the qualities on it and how they are asked for."""
