"""Takes the command line; gives it to the stage that answers: the one command `upfield`, and the demo."""
