"""Files that one process leaves for another, each with one reader."""
