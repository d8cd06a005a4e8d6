"""Files that others read or write; only this folder knows the names that other libraries use."""
