"""The command `upfield`, which runs the stage that its first argument names, and the demonstration."""
