-- Sizes in bytes, with indexes and TOAST.

-- raw_table --
select pg_total_relation_size('public.resource_usage_log')

-- rollups --
-- By what they are: tables of schema usage with a bucket, and their keys, be there more of them than today.
select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = 'usage' and c.relkind = 'r' and c.relname ~ '^(daily|monthly|hourly|key$)'
