"""The page that a finished run leaves for a person to read."""
