"""Does editing provide evidence for localization? Probed heads against random ones, single ones and all."""
