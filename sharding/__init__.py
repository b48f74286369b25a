"""Take cohorts of NIfTI files, and write a set of WebDataset shards with index and manifest; read such a set again."""
