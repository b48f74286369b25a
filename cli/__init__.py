"""The command `upfield`, which passes its arguments to the stage of a verb, and the demonstration."""
