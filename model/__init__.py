"""Takes low-field slices; gives restored slices: the AMIR network, its presets, losses and weight files."""
