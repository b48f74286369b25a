"""The AMIR network, which restores low-field slices, with its presets, losses and weight files."""
