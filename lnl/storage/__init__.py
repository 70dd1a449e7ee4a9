"""Results on disk and on object storage: tables, leases, checkpoints, logs."""
