"""The page on which people choose between answers, annotate texts and write instruction data."""
