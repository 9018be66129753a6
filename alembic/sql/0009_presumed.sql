-- Folds of events that are presumed to be well formed.

-- A fifth less than usage.measured_sql() takes: numbers are compared with the bounds once; decimals, rejections and long keys
-- are looked for in the sums of a group, not in each event. Sums of numeric have the decimals of the one that has most, and
-- NaN is never a number of an event. A number beyond the bounds is no summand: sums of two such may fail.
create function usage.presumed_sql(from_at timestamptz, to_at timestamptz) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select format($sql$(
select n.created_at, n.collection_id, n.resource_type collate "C" as resource_type,
       n.job_type collate "C" as job_type, n.model_level collate "C" as model_level,
       case when n.value between -1e18 and 1e18 then n.value when n.value is not null then 'NaN' end as value,
       case when n.secondary between -1e18 and 1e18 then n.secondary when n.secondary is not null then 'NaN' end as secondary
  from (select j.created_at, j.collection_id, j.resource_type, j.job_type, j.model_level,
               case when jsonb_typeof(j.value) = 'number' then j.value::numeric
                    when jsonb_typeof(j.value) <> 'null' then coalesce(usage.parsed_number(j.value), 'NaN') end as value,
               case when jsonb_typeof(j.secondary) = 'number' then j.secondary::numeric
                    when jsonb_typeof(j.secondary) <> 'null' then coalesce(usage.parsed_number(j.secondary), 'NaN') end as secondary
          from (select r.created_at, r.collection_id, r.resource_type,
                       r.detail ->> 'job_type' as job_type, r.detail ->> 'model_level' as model_level,
                       %s as value, %s as secondary
                  from (%s) r
                offset '0') j
        offset '0') n)$sql$,
        m.value, m.secondary,
        usage.signed_events_sql(array[1], array[from_at], array[to_at], null, null, null, null, null))
      from usage.metric_sql() m
$$;
comment on function usage.presumed_sql(timestamptz, timestamptz) is
'What to write in FROM for the raw events of a range as if they were well formed: key texts as they are, and NaN for what is no number within bounds. Whoever adds them up has to look for NaN, more than 40 decimals and long texts in the sums, and where there are any, to use usage.measured_sql().';

-- Who folds may use it, until deploy/roles.sql is run again.
do $$
declare
    statement text;
begin
    for statement in
        select format('grant execute on function %s to %s%s', new.oid::regprocedure, a.grantee::regrole,
                      case when a.is_grantable then ' with grant option' else '' end)
          from pg_proc old
          join pg_proc new on new.pronamespace = old.pronamespace and new.proname = 'presumed_sql',
               aclexplode(old.proacl) a
         where old.pronamespace = 'usage'::regnamespace and old.proname = 'measured_sql' and a.grantee not in (0, old.proowner)
    loop
        execute statement;
    end loop;
end $$;

select usage.restore_grants();
