"""The machinery that every method uses; it knows no method."""
