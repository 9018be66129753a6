-- Run-time SQL of workers: sums of days, from one connection to another.

-- import_snapshot --
set transaction snapshot {snapshot}

-- settle --
-- One worker, one process. Of keys see fold.settings and fold.read_all_keys.
set local work_mem = '64MB';
set local enable_mergejoin = off;
set local enable_nestloop = off;
set local max_parallel_workers_per_gather = 0

-- copy_out --
copy ({part}) to stdout (format binary)

-- copy_in --
copy pg_temp.{table} from stdin (format binary)

-- add_here --
set local enable_nestloop = off;
insert into pg_temp.{table} {part};
set local enable_nestloop to default
