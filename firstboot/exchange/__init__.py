"""Files that one process leaves for another: one reader and one writer each."""
