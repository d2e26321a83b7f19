"""`dse run FILE`: a node from a file."""
