"""Where verdicts come from: a file a back end, and a line for it in `judges.BACKENDS`."""
