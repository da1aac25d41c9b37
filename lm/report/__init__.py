"""HTML pages and terminal output: the report of a run, and `show`."""
