"""One task a file; the file's name is its name in the catalog."""
