"""What leaves the project in other formats: artifact in, files and an equivalence record out."""
