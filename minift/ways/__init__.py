"""Where instruction and preference data come from: templates, annotators, a crowd, a language model, preferences."""
