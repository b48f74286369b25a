"""The command line: the dispatcher `upfield`, which passes arguments on to a stage, and the demonstration."""
