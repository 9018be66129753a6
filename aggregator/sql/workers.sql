-- Run-time SQL of workers: sums of days, from one connection to another.

-- import_snapshot --
set transaction snapshot {snapshot}

-- settle --
-- One worker, one process.
set local work_mem = '64MB';
set local max_parallel_workers_per_gather = 0

-- copy_out --
copy ({part}) to stdout (format binary)

-- copy_in --
copy pg_temp.{table} from stdin (format binary)
