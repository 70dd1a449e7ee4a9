"""Results on disk and on object storage: `store` is the door to tables, leases, checkpoints and logs."""
