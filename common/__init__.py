"""Code that all stages share: errors, commands, files, locks, progress, processes, Ray, stores, tables and HTML."""
