"""Code that all stages share: errors, command grammar, files, locks, progress, processes, Ray, stores, tables and HTML."""
