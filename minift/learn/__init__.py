"""For people who work through the lessons: check() with its hints, and the verb that opens a lesson."""
