"""What every stage stands on: errors, the command grammar, files, locks, progress, processes, stores, tables, pages."""
