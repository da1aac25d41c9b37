"""What several test modules share, in files named after their subject."""
