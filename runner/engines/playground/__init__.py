"""The playground of `subvene ui`: a page on the server of `subvene serve`, one answer beside the other."""
