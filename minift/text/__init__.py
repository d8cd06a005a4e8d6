"""How words become tensors: tokenizers, chats, JSONL files, batches."""
