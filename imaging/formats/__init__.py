"""The fields of NIfTI and MGH headers: raw bytes -> one `Header`, with a finding for each value that is doubtful."""
