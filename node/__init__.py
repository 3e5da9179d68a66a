"""One daemon on one disk."""
