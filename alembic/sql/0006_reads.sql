-- Reads that group once, and one home for days that have moved.

-- When they began and ended --------------------------------------------------------------------------------------------------

drop function usage.moved_day(boolean);
create function usage.moved_day(sealed boolean, since timestamptz default '-infinity', until timestamptz default null) returns date
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select min(r.day)
      from usage.state s, usage.rolled_day r
     where (r.starts_at < s.sealed_until) = sealed
       and r.ends_at > since and (until is null or r.starts_at < until)
       and (usage.day_start(r.day, s.time_zone) <> r.starts_at
            or usage.day_start(usage.next_day(r.day), s.time_zone) <> r.ends_at)
$$;
comment on function usage.moved_day(boolean, timestamptz, timestamptz) is
'The first day, sealed or not, with a part in [since, until) (until null: open) that by this session''s time zone data does not begin and end when its events were added up; null: none.';

create or replace function usage.window_parts(since timestamptz, until timestamptz) returns usage.window_parts
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    p      usage.window_parts := usage.cut_window(since, until);
    reason text := usage.lookback_reason(p.day_from);
begin
    if reason is not null then
        p.exact := false;
        p.reasons := p.reasons || reason;
    end if;
    -- What is sealed cannot be added up anew: its answers say so.
    if current_setting('usage.rolled_days', true) like '% sealed %' then  -- as usage.doubt() has found
        reason := 'the time zone data has changed: ' || usage.moved_day(true, since, until) || ', which is sealed, counts as it began and ended before';
        if reason is not null then
            p.exact := false;
            p.reasons := p.reasons || reason;
        end if;
    end if;
    return p;
end $$;

do $$
declare
    grantee text;
begin
    for grantee in
        select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end
          from pg_proc p, aclexplode(p.proacl) a
         where p.oid = 'usage.fingerprint_doubt()'::regprocedure and a.grantee not in (0, p.proowner)
    loop
        execute format('grant execute on function usage.moved_day(boolean, timestamptz, timestamptz) to %s', grantee);
    end loop;
end $$;

-- The one reader --------------------------------------------------------------------------------------------------------------

-- Raw events that one section alone counts are grouped there, not before too: grouping a few thousand keys costs more than
-- reading them (a tenth of a read by collection).
do $$
declare
    patched record;
    text    text := pg_get_functiondef('usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean)'::regprocedure);
begin
    for patched in
        select *
          from (values
                   ('
    rolled   text;', '
    once     constant boolean := not receipt and by_collection::integer + ai::integer + daily::integer = 1;
    rolled   text;'),
                   ('
        select %s as day, e.collection_id, e.resource_type, %s,
               sum(e.sign) as event_count,
               coalesce(sum(usage.signed(e.sign, e.value)), 0) as total_value,
               coalesce(sum(usage.signed(e.sign, e.secondary)), 0) as secondary_value,
               count(*) filter (where not e.late) as raw_rows,
               count(*) filter (where e.late) as late_rows
          from %s e
         where %s
         group by 1, 2, 3, 4, 5)$query$,', '
        select %1$s as day, e.collection_id, e.resource_type, %2$s,
               %5$s(e.sign)::bigint as event_count,
               coalesce(%5$s(usage.signed(e.sign, e.value)), 0) as total_value,
               coalesce(%5$s(usage.signed(e.sign, e.secondary)), 0) as secondary_value%6$s
          from %3$s e
         where %4$s)$query$,'),
                   ('
            case when by_collection or daily then ''true'' else $query$e.resource_type = ''ai''$query$ end));', '
            case when by_collection or daily then ''true'' else $query$e.resource_type = ''ai''$query$ end
                || case when once then '''' else '' group by 1, 2, 3, 4, 5'' end,
            case when once then '''' else ''sum'' end,
            case when once then '''' else '', count(*) filter (where not e.late) as raw_rows, count(*) filter (where e.late) as late_rows'' end));'),
                   ('sum(z.event_count) as event_count, sum(z.total_value) as total_value,
                       sum(z.secondary_value) as secondary_value, count(*) as rollup_rows', 'sum(z.event_count)::bigint as event_count, sum(z.total_value) as total_value,
                       sum(z.secondary_value) as secondary_value, count(*) as rollup_rows')) p (old, new)
    loop
        if position(patched.old in text) = 0 then
            raise 'migration 0006 does not know this usage.window_rows';
        end if;
        text := replace(text, patched.old, patched.new);
    end loop;
    execute text;
end $$;

select usage.restore_grants();
