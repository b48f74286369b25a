"""Code that several stages share: errors, commands, files, locks, progress, processes, Ray, stores, tables and HTML."""
