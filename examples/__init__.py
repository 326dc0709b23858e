"""Spec files that run as they stand. They travel with the package, and `subvene init` begins from them."""
