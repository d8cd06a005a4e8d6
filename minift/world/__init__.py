"""The embedded toy world: scenes, the texts and tasks that are made from them, and how data/ was made."""
