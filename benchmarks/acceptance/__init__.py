"""The acceptance run on a GPU: the plan, the runner, what checks report and measure, and the checks themselves."""
