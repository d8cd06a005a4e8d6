"""One fine-tuning idea per file; none imports another."""
