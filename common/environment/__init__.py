"""What surrounds a command: variables, files and processes that libraries read, and what upfield does about each."""
