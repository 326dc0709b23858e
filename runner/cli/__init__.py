"""The command line: `subvene`, one file a command group."""
