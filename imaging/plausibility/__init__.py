"""Takes volumes and headers; returns a sentence about each fact that makes it doubtful that they are what they seem."""
