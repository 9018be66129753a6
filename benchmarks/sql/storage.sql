-- Sizes in bytes, with indexes and TOAST.

-- raw_table --
select pg_total_relation_size('public.resource_usage_log')

-- rollups --
-- By what they are: tables of schema usage whose rows have a key's number, be there more of them than today, and some by type alone.
select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = 'usage' and c.relkind = 'r' and (c.relname in ('daily_total', 'hourly_total', 'mark_total', 'six_hours', 'key')
        or exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'key_id' and not a.attisdropped))
