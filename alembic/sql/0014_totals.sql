-- Hours by resource type alone, and marks of these, so that a daily series costs what it has rows for.

-- A day's row has five types or so, an hour of all collections thousands of rows. For a series of days whose edges or midnights lie
-- within a day all of these were read, and up to half an hour of events. So hours are summed up by type, by a trigger; and of six
-- hours that have some events their quarters of hours, where midnights of the world lie, and instants a few hundred events apart.

-- Hours by type ------------------------------------------------------------------------------------------------------------------

create table usage.hourly_total (
    hour             timestamptz not null,
    resource_type    text        collate "C",
    event_count      bigint      not null,
    total_value      numeric     not null,
    secondary_value  numeric     not null,
    rejected_count   bigint      not null,
    constraint hourly_total_key unique nulls not distinct (hour, resource_type)
) with (fillfactor = 80);
alter table usage.hourly_total replica identity full;
comment on table usage.hourly_total is
'Sums by UTC hour and resource type, as of usage.freshness, if hours are kept. Kept by a trigger on usage.hourly_collection_fact.';
comment on column usage.hourly_total.hour is 'First instant of the UTC hour.';
comment on column usage.hourly_total.resource_type is 'Resource type, or null; long text is abridged.';
comment on column usage.hourly_total.event_count is 'Number of events.';
comment on column usage.hourly_total.total_value is 'Exact sum of the type''s value, in usage.metric.unit.';
comment on column usage.hourly_total.secondary_value is 'Exact sum of the type''s secondary value, in usage.metric.secondary_unit.';
comment on column usage.hourly_total.rejected_count is 'Events with a value that is no number: counted, adding 0.';

create function usage.keep_hourly_total() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'TRUNCATE' then
        truncate usage.hourly_total;
        return null;
    end if;
    execute format($sql$
        insert into usage.hourly_total as t (hour, resource_type, event_count, total_value, secondary_value, rejected_count)
        select h.hour, k.resource_type, sum(h.event_count), sum(h.total_value), sum(h.secondary_value), sum(h.rejected_count)
          from (%s) h (hour, key_id, event_count, total_value, secondary_value, rejected_count)
          join usage.key k on k.id = h.key_id
         group by 1, 2
         order by 1, 2
            on conflict on constraint hourly_total_key do update
           set event_count = t.event_count + excluded.event_count,
               total_value = t.total_value + excluded.total_value,
               secondary_value = t.secondary_value + excluded.secondary_value,
               rejected_count = t.rejected_count + excluded.rejected_count$sql$,
        concat_ws(' union all ',
            case when tg_op <> 'DELETE' then
                'select n.hour, n.key_id, n.event_count, n.total_value, n.secondary_value, n.rejected_count from new_hours n' end,
            case when tg_op <> 'INSERT' then
                'select o.hour, o.key_id, -o.event_count, -o.total_value, -o.secondary_value, -o.rejected_count from old_hours o' end));
    if tg_op = 'DELETE' then  -- what became nothing is deleted in the hour, too
        delete from usage.hourly_total t
         using (select distinct o.hour from old_hours o) o
         where t.hour = o.hour and t.event_count = 0 and t.total_value = 0 and t.secondary_value = 0 and t.rejected_count = 0;
    end if;
    return null;
end $$;
comment on function usage.keep_hourly_total() is 'Trigger on usage.hourly_collection_fact: adds to hours by type what is added to those by collection.';

create trigger keep_hourly_total_insert after insert on usage.hourly_collection_fact
    referencing new table as new_hours for each statement execute function usage.keep_hourly_total();
create trigger keep_hourly_total_update after update on usage.hourly_collection_fact
    referencing new table as new_hours old table as old_hours for each statement execute function usage.keep_hourly_total();
create trigger keep_hourly_total_delete after delete on usage.hourly_collection_fact
    referencing old table as old_hours for each statement execute function usage.keep_hourly_total();
create trigger keep_hourly_total_truncate after truncate on usage.hourly_collection_fact
    for each statement execute function usage.keep_hourly_total();

insert into usage.hourly_total
select f.hour, k.resource_type, sum(f.event_count), sum(f.total_value), sum(f.secondary_value), sum(f.rejected_count)
  from usage.hourly_collection_fact f
  join usage.key k on k.id = f.key_id
 group by 1, 2
 order by 1, 2;
analyze usage.hourly_total;

-- A reader whose snapshot is older than this migration would find none: it sees the default.
alter table usage.state add column has_hourly_total boolean not null default false;
comment on column usage.state.has_hourly_total is 'usage.hourly_total is filled. False in a snapshot from before it was.';
update usage.state set has_hourly_total = true;

-- Marks of them ------------------------------------------------------------------------------------------------------------------

create table usage.mark_total (
    at               timestamptz not null,
    resource_type    text        collate "C",
    event_count      bigint      not null,
    total_value      numeric     not null,
    secondary_value  numeric     not null,
    constraint mark_total_key unique nulls not distinct (at, resource_type)
);
alter table usage.mark_total replica identity full;
comment on table usage.mark_total is
'Sums of the events before an instant, from the beginning of its UTC hour on, by resource type: only where usage.six_hours.has_totals, other rows are remains.';
comment on column usage.mark_total.at is 'The instant, within an hour: each of its quarters, and others. A quarter without rows has no events before it.';
comment on column usage.mark_total.resource_type is 'Resource type, or null; long text is abridged.';
comment on column usage.mark_total.event_count is 'Number of events.';
comment on column usage.mark_total.total_value is 'Exact sum of the type''s value, in usage.metric.unit.';
comment on column usage.mark_total.secondary_value is 'Exact sum of the type''s secondary value, in usage.metric.secondary_unit.';

alter table usage.six_hours add column has_totals boolean;
alter table usage.six_hours add constraint six_hours_has_totals check (has_totals is null or marks is not null);
comment on column usage.six_hours.has_totals is
'Whether usage.mark_total has their quarters of hours, and more; null: they were not made; false: they would not pay.';
comment on constraint six_hours_has_totals on usage.six_hours is 'Both kinds of marks are made together, and let go of together.';
create index six_hours_unmarked on usage.six_hours (event_count) where has_totals is null;
comment on index usage.six_hours_unmarked is 'What is to be marked: usage.six_hours has a row for each six hours of history.';
drop index usage.six_hours_event_count;

create function usage.quarter_hour_of(at timestamptz) returns timestamptz
language sql immutable parallel safe
return pg_catalog.date_bin('15 minutes', at, '2000-01-01 00:00:00+00');
comment on function usage.quarter_hour_of(timestamptz) is
'The quarter of an hour that an instant of years 1-9999 lies in, by its first instant.';

-- Verification names what it repairs.
alter table usage.restatement drop constraint restatement_rollup;
alter table usage.restatement add constraint restatement_rollup check (
    rollup in ('daily', 'monthly', 'daily_collection', 'monthly_collection', 'quarterly_collection', 'daily_total',
               'hourly', 'hourly_collection', 'hourly_total'));

-- Whoever reads hours, or keeps them, does so with these, until deploy/roles.sql is run again.
do $$
declare
    statement text;
begin
    for statement in
        select distinct format('grant %s on %s to %s%s', g.privilege_type, n.tables,
                               case g.grantee when 0 then 'public' else g.grantee::regrole::text end,
                               case when g.is_grantable then ' with grant option' else '' end)
          from pg_class c, aclexplode(c.relacl) g,
               lateral (select case c.relname when 'hourly_collection' then 'usage.hourly_total' else 'usage.hourly_total, usage.mark_total' end) n (tables)
         where c.oid in ('usage.hourly_collection'::regclass, 'usage.hourly_collection_fact'::regclass) and g.grantee <> c.relowner
           and (g.privilege_type = 'SELECT' or c.relname = 'hourly_collection_fact' and g.privilege_type in ('INSERT', 'UPDATE', 'DELETE'))
        union all
        select format('grant execute on function usage.quarter_hour_of(timestamptz) to %s%s',
                      case a.grantee when 0 then 'public' else a.grantee::regrole::text end,
                      case when a.is_grantable then ' with grant option' else '' end)
          from pg_proc p, aclexplode(p.proacl) a
         where p.oid = 'usage.six_hours_of(timestamptz)'::regprocedure and a.grantee not in (0, p.proowner)
    loop
        execute statement;
    end loop;
end $$;

-- Readers ------------------------------------------------------------------------------------------------------------------------

alter type usage.window_parts add attribute hour_days date[];  -- the day that hours count in, by type; null: hours are by collection
alter type usage.window_parts add attribute mark_days date[];  -- and that marks count in, of usage.mark_total

create function usage.with_late_of(p usage.window_parts, was_from timestamptz[], was_to timestamptz[], now_from timestamptz[], now_to timestamptz[])
returns usage.window_parts
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    -- A range without bounds would be all of time.
    counted tstzmultirange := case when p.late_from < p.late_to then tstzmultirange(tstzrange(p.late_from, p.late_to)) else '{}' end
                              - coalesce((select range_agg(tstzrange(g.from_at, g.to_at)) from unnest(p.gap_from, p.gap_to) g (from_at, to_at)), '{}');
    cut     tstzmultirange := coalesce((select range_agg(tstzrange(w.from_at, w.to_at)) from unnest(was_from, was_to) w (from_at, to_at)), '{}');
    gaps    tstzmultirange;
begin
    counted := (counted + cut) - (counted * cut);
    for n in 1 .. coalesce(cardinality(now_from), 0) loop
        cut := tstzmultirange(tstzrange(now_from[n], now_to[n]));
        counted := (counted + cut) - (counted * cut);
    end loop;
    p.late_from := lower(counted);
    p.late_to := upper(counted);
    gaps := tstzmultirange(tstzrange(p.late_from, p.late_to)) - counted;
    p.gap_from := (select array_agg(lower(g.gap) order by g.gap) from unnest(gaps) g (gap));
    p.gap_to := (select array_agg(upper(g.gap) order by g.gap) from unnest(gaps) g (gap));
    return p;
end $$;
comment on function usage.with_late_of(usage.window_parts, timestamptz[], timestamptz[], timestamptz[], timestamptz[]) is
'The parts of a window with the ranges where late changes count, when other ranges of raw events are added or taken off than were (which do not overlap): a late change counts where it did not, and the other way round, for each that was and each that is now.';

-- What lies between the beginning of an hour and an instant is the nearest mark's sums, and the events between, so a range of raw
-- events is what lies so before its end, less what lies so before its beginning, and the hours from one to the other.
create function usage.with_totals(p usage.window_parts) returns usage.window_parts
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    s         record;
    was_from  timestamptz[];  -- raw ranges, as they were
    was_to    timestamptz[];
    was_signs integer[];
    day       date;           -- that a range lies in
    day_from  timestamptz;
    day_to    timestamptz;
    bounds    timestamptz[];  -- from, to
    hours     timestamptz[];  -- that they lie in
    marks     timestamptz[];  -- to go by; null: there is none
    before    timestamptz;    -- the marks beside a bound
    after     timestamptz;
    add       integer;
begin
    select usage.hours_from(x.hourly_since) as low, x.has_hourly_total into s from usage.state x;
    -- With a doubt, or where it is not exact, as it is.
    if p.reasons <> '{}' or s.low is null or not s.has_hourly_total then
        return p;
    end if;
    p.hour_days := array(select usage.local_day(h.from_hour, p.zone) from unnest(p.hours_from) with ordinality h (from_hour, n) order by h.n);
    p.mark_days := '{}';
    select array_agg(r.sign), array_agg(r.from_at), array_agg(r.to_at)
      into was_signs, was_from, was_to
      from unnest(array[p.head_sign, p.foot_sign] || p.cut_signs, array[p.head_from, p.foot_from] || p.cut_from,
                  array[p.head_to, p.foot_to] || p.cut_to) r (sign, from_at, to_at)
     where r.from_at < r.to_at;
    p.head_from := null;
    p.foot_from := null;
    p.cut_signs := null;
    p.cut_from := null;
    p.cut_to := null;
    for n in 1 .. coalesce(cardinality(was_signs), 0) loop
        bounds := array[was_from[n], was_to[n]];
        day := usage.local_day(bounds[1], p.zone);
        day_from := usage.day_start(day, p.zone);
        day_to := usage.day_start(usage.next_day(day), p.zone);
        for e in 1 .. 2 loop
            hours[e] := usage.hour_of(bounds[e]);
            marks[e] := case when hours[e] = bounds[e] and hours[e] >= s.low then bounds[e] end;
            if hours[e] < bounds[e] and hours[e] >= s.low and hours[e] + interval '1 hour' <= p.frontier
               and (select h.has_totals from usage.six_hours h where h.starts_at = usage.six_hours_of(bounds[e])) then
                before := usage.quarter_hour_of(bounds[e]);
                after := before;
                if before < bounds[e] then
                    after := least((select min(m.at) from usage.mark_total m where m.at > bounds[e] and m.at < before + interval '15 minutes'), before + interval '15 minutes');
                    before := greatest((select max(m.at) from usage.mark_total m where m.at > before and m.at <= bounds[e]), before);
                end if;
                -- Nothing is read raw in another day, whose late changes would count twice; so nothing below a seal, as of an hour that
                -- it cuts there is no sum.
                if before < day_from then
                    before := null;
                end if;
                if after > day_to then
                    after := null;
                end if;
                marks[e] := case when before is null or after - bounds[e] < bounds[e] - before then coalesce(after, before) else before end;
            end if;
        end loop;
        -- Of an instant that is not finite there is no mark, nor a distance before PostgreSQL 17.
        if (case when marks[1] is not null and marks[2] is not null
                 then greatest(marks[1] - bounds[1], bounds[1] - marks[1]) + greatest(marks[2] - bounds[2], bounds[2] - marks[2])
                      < bounds[2] - bounds[1] end) then
            -- The end of an hour is that hour whole.
            hours := array[case when marks[1] > hours[1] and usage.hour_of(marks[1]) = marks[1] then marks[1] else hours[1] end,
                           case when marks[2] > hours[2] and usage.hour_of(marks[2]) = marks[2] then marks[2] else hours[2] end];
            if hours[1] < hours[2] then
                p.hour_signs := p.hour_signs || was_signs[n];
                p.hours_from := p.hours_from || hours[1];
                p.hours_to := p.hours_to || hours[2];
                p.hour_days := p.hour_days || day;
            end if;
            for e in 1 .. 2 loop
                add := case e when 1 then -was_signs[n] else was_signs[n] end;
                if marks[e] <> hours[e] then
                    p.mark_signs := p.mark_signs || add;
                    p.marks := p.marks || marks[e];
                    p.mark_days := p.mark_days || day;
                end if;
                if marks[e] <> bounds[e] then
                    p.cut_signs := p.cut_signs || case when marks[e] > bounds[e] then -add else add end;
                    p.cut_from := p.cut_from || least(marks[e], bounds[e]);
                    p.cut_to := p.cut_to || greatest(marks[e], bounds[e]);
                end if;
            end loop;
        else
            p.cut_signs := p.cut_signs || was_signs[n];
            p.cut_from := p.cut_from || was_from[n];
            p.cut_to := p.cut_to || was_to[n];
        end if;
    end loop;
    return usage.with_late_of(p, was_from, was_to, p.cut_from, p.cut_to);
end $$;
comment on function usage.with_totals(usage.window_parts) is
'The parts of a window of all collections for sums by resource type alone: hours and marks by type, each with the day that it counts in, and few raw events; as they were without hours, or with a doubt.';

create function usage.total_sql(p usage.window_parts, bucket text) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
begin
    return nullif(concat_ws(' union all ',
        case when p.day_from < p.day_to then
            format('select %s as bucket, t.resource_type, t.event_count, t.total_value, t.secondary_value'
                   ' from usage.daily_total t where t.day >= %L::date and t.day < %L::date', replace(bucket, '*', 't.day'), p.day_from, p.day_to) end,
        (select string_agg(format('select %s, t.resource_type, %2$s * t.event_count, %2$s * t.total_value, %2$s * t.secondary_value'
                                  ' from usage.hourly_total t where t.hour >= %3$L::timestamptz and t.hour < %4$L::timestamptz',
                                  replace(bucket, '*', format('%L::date', h.day)), h.sign, h.from_hour, h.to_hour), ' union all ')
           from unnest(p.hour_signs, p.hours_from, p.hours_to, p.hour_days) h (sign, from_hour, to_hour, day)
          where p.hour_days is not null),
        (select string_agg(format('select %s, t.resource_type, %2$s * t.event_count, %2$s * t.total_value, %2$s * t.secondary_value'
                                  ' from usage.mark_total t where t.at = %3$L::timestamptz',
                                  replace(bucket, '*', format('%L::date', m.day)), m.sign, m.at), ' union all ')
           from unnest(p.mark_signs, p.marks, p.mark_days) m (sign, at, day)
          where p.mark_days is not null)), '');
end $$;
comment on function usage.total_sql(usage.window_parts, text) is
'A statement that reads what a window has by resource type alone: days, and hours and marks if usage.with_totals() has looked for them; null: there is nothing to read. bucket: an expression, with * for the day.';

-- By one statement that a session plans once, as usage.planned_by_collection().
do $do$
declare
    value   constant text := 'r.detail -> (value_keys ->> r.resource_type)';
    rolled  constant text := $sql$
                select t.day, t.resource_type, t.event_count, t.total_value
                  from usage.daily_total t
                 where t.day >= p.day_from and t.day < p.day_to
                union all
                select h.day, t.resource_type, h.sign * t.event_count, h.sign * t.total_value
                  from unnest(p.hour_signs, p.hours_from, p.hours_to, p.hour_days) h (sign, from_hour, to_hour, day),
                       lateral (select x.* from usage.hourly_total x where x.hour >= h.from_hour and x.hour < h.to_hour offset '0') t
                union all
                select m.day, t.resource_type, m.sign * t.event_count, m.sign * t.total_value
                  from unnest(p.mark_signs, p.marks, p.mark_days) m (sign, at, day),
                       lateral (select x.* from usage.mark_total x where x.at = m.at offset '0') t$sql$;
    ranges  constant text := $sql$
                       select c.sign, false as late, x.created_at, x.collection_id, x.resource_type, x.detail
                         from unnest(signs, starts, ends) c (sign, from_at, to_at),
                              lateral (select e.created_at, e.collection_id, e.resource_type, e.detail
                                         from usage.event() e
                                        where e.created_at >= c.from_at and e.created_at < c.to_at
                                       offset '0') x
                        where %s$sql$;
    well_formed text;
begin
    -- A branch for either sign and for each of two days, so that neither is worked out for each event.
    select string_agg(format($sql$
                union all
                select %s, e.resource_type, e.sign::bigint, e.value
                  from %s e$sql$,
               a.day, usage.well_formed_text(a.sign, null, value, 'null::jsonb',
                                             format(ranges, format('is_well and c.sign = %s and c.from_at %s last_from', a.sign, a.side)))), '' order by a.n)
      into well_formed
      from (values (1, 1, 'first_day', '<'), (2, 1, 'last_day', '>='), (3, -1, 'first_day', '<'), (4, -1, 'last_day', '>=')) a (n, sign, day, side);
    execute format($function$
create function usage.planned_daily_series(p usage.window_parts, value_keys jsonb)
returns table (day date, starts_at timestamptz, resource_type text, event_count bigint, total_value float8)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off set enable_sort = off
set plan_cache_mode = force_generic_plan set max_parallel_workers_per_gather = 0
as $$
#variable_conflict use_column
declare
    -- By min(), which goes by the index: for EXISTS the planner may read the table from its beginning.
    any_late  constant boolean := coalesce((select min(l.created_at) from usage.late_change l where l.created_at >= p.late_from) < p.late_to, false);
    open_from constant timestamptz := case when p.tail_to is null then p.tail_from end;
    signs     integer[];      -- ranges of raw events, each with a sign
    starts    timestamptz[];
    ends      timestamptz[];
    first_day date;           -- the days that the window cuts, two at most
    last_day  date;
    last_from timestamptz;    -- where the second one begins
    is_well   boolean;        -- whether the events of the ranges are known to be well formed
begin
    select array_agg(r.sign), array_agg(r.from_at), array_agg(r.to_at),
           min(usage.local_day(r.from_at, p.zone)), max(usage.local_day(r.from_at, p.zone))
      into signs, starts, ends, first_day, last_day
      from unnest(array[p.head_sign, p.foot_sign] || p.cut_signs, array[p.head_from, p.foot_from] || p.cut_from,
                  array[p.head_to, p.foot_to] || p.cut_to) r (sign, from_at, to_at)
     where r.from_at < r.to_at;
    last_from := case when last_day > first_day then usage.day_start(last_day, p.zone) else 'infinity' end;
    is_well := signs is null or usage.are_well_formed(starts, ends);
    if is_well and p.tail_from is null and not any_late then
        return query
        select r.day, usage.day_label(r.day, p.zone), r.resource_type::text, r.event_count, r.total_value
          from (%4$s from (%1$s%2$s) z %5$s) r
         order by r.day desc, r.resource_type collate "C" nulls last;
    else
        return query
        select r.day, usage.day_label(r.day, p.zone), r.resource_type::text, r.event_count, r.total_value
          from (%4$s from (%1$s%2$s
                union all
                select usage.local_day(e.created_at, p.zone), e.resource_type, e.sign::bigint, usage.signed(e.sign, e.value)
                  from %3$s e) z %5$s) r
         order by r.day desc, r.resource_type collate "C" nulls last;
    end if;
end $$$function$,
        rolled,
        well_formed,
        usage.measured_text(value, 'null::jsonb', format(ranges, 'not is_well') || $sql$
                       union all
                       select 1, false, e.created_at, e.collection_id, e.resource_type, e.detail
                         from usage.event() e
                        where e.created_at >= p.tail_from and e.created_at < p.tail_to
                       union all
                       select 1, false, e.created_at, e.collection_id, e.resource_type, e.detail
                         from usage.event() e
                        where e.created_at >= open_from and e.created_at <= 'infinity'
                       union all
                       select l.sign::integer, true, l.created_at, l.collection_id, l.resource_type, l.detail
                         from usage.late_change l
                        where l.created_at >= p.late_from and l.created_at < p.late_to
                          and not exists (select from unnest(p.gap_from, p.gap_to) g (from_at, to_at)
                                           where l.created_at >= g.from_at and l.created_at < g.to_at)$sql$),
        -- The fence keeps the planner from sorting all rows for the sake of the order, and grouping them so.
        'select z.day, z.resource_type, sum(z.event_count)::bigint as event_count, coalesce(sum(z.total_value), 0)::float8 as total_value',
        $$group by z.day, z.resource_type having sum(z.event_count) <> 0 offset '0'$$);
end $do$;
comment on function usage.planned_daily_series(usage.window_parts, jsonb) is
'What usage.daily_series() says of a window of all collections, which usage.with_totals() has seen, by one statement that a session plans once. value_keys: as usage.planned_keys() gives them.';

create or replace function usage.daily_series(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (day date, starts_at timestamptz, resource_type text, event_count bigint, total_value float8)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set row_security = off
as $$
#variable_conflict use_column
declare
    keys jsonb;
    p    usage.window_parts;
begin
    if daily_series.collection is null then
        select k.value_keys into keys from usage.planned_keys(false) k;
        if keys is not null then
            p := usage.with_totals(usage.window_parts(daily_series.since, daily_series.until));
            if (p.hour_days is not null or p.hour_signs is null) and usage.expected_events(p) < 500000 then
                return query select r.* from usage.planned_daily_series(p, keys) r;
                return;
            end if;
        end if;
    end if;
    return query
    select r.day, usage.day_label(r.day, (select s.time_zone from usage.state s)), r.resource_type, r.event_count,
           r.total_value::float8
      from usage.window_rows(daily_series.since, daily_series.until, daily_series.collection, false, false, true, false) r
     where r.section = 'daily'
     order by r.day desc, r.resource_type collate "C" nulls last;
end $$;

-- As before, but by hours of all collections, and a part of an hour by marks.
create or replace function usage.daily_series(since timestamptz, until timestamptz, collection uuid, time_zone text)
returns table (day date, starts_at timestamptz, resource_type text, event_count bigint, total_value float8)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set parallel_setup_cost = 100000 set row_security = off set datestyle = 'ISO, YMD'
as $$
#variable_conflict use_column
declare
    s           usage.state;
    zone        constant text := daily_series.time_zone;
    top         timestamptz;   -- rollups are read below this instant, raw events from it on
    bound       timestamptz;
    first_hour  timestamptz;   -- hours are read in [first_hour, last_hour), save those that are cut; null: none is
    last_hour   timestamptz;
    first_row   timestamptz;   -- there are some from one of these to the other
    last_row    timestamptz;
    raw_from    timestamptz[] := '{}';
    raw_to      timestamptz[] := '{}';
    cuts_from   timestamptz[];
    cuts_to     timestamptz[];
    cut_hours   timestamptz[];
    by_marks    boolean;
    midnights   timestamptz[];       -- within hours, which count in the day of their end: what lies before is taken to the day before
    p           usage.window_parts;  -- parts of hours at the window's ends, each of one day: what they are read by
    ends_from   timestamptz[];       -- where these begin
    hours       text;
begin
    select * into strict s from usage.state;
    if zone is null or zone = s.time_zone then
        return query select d.day, d.starts_at, d.resource_type, d.event_count, d.total_value
                       from usage.daily_series(daily_series.since, daily_series.until, daily_series.collection) d;
        return;
    elsif s.source is null then
        raise object_not_in_prerequisite_state using message = 'not attached: run aggregator attach';
    end if;
    perform now() at time zone zone;  -- fails for one that does not exist
    if since is null or until <= since then
        return;
    end if;
    top := usage.effective_frontier();
    if until is null or until > top then
        raw_from := array[greatest(top, since)];
        raw_to := array[until];
    end if;
    if since < top then
        bound := least(until, top);  -- least() ignores a null
        if s.hourly_since is not null then
            first_hour := greatest(usage.hours_from(since), usage.hours_from(s.hourly_since), '1900-01-01 00:00:00+00');
            last_hour := case when bound < top then usage.hours_to(bound) else usage.hours_from(top) end;
        end if;
        if first_hour < last_hour then
            -- With a doubt all this is below the seal, where marks are the record as hours are.
            by_marks := collection is null and s.has_hourly_total and s.capture_mode <> 'lookback';
            first_row := (select min(f.hour) from usage.hourly_collection_fact f where f.hour >= first_hour and f.hour < last_hour);
            last_row := (select max(f.hour) from usage.hourly_collection_fact f where f.hour >= first_hour and f.hour < last_hour);
            with midnight as (
                select m.at, m.at - interval '3 hours' as before,
                       (m.at at time zone zone) - ((m.at - interval '3 hours') at time zone zone) <> interval '3 hours' as changed,
                       by_marks and usage.quarter_hour_of(m.at) = m.at
                           and ((m.at + interval '3 hours') at time zone zone) - ((m.at - interval '3 hours') at time zone zone) = interval '6 hours'
                           and exists (select from usage.six_hours h where h.starts_at = usage.six_hours_of(m.at) and h.has_totals) as is_mark
                  from generate_series(0, usage.local_day(last_row, zone) - usage.local_day(first_row, zone) + 1) n,
                       lateral (select usage.day_start(usage.local_day(first_row, zone) + n, zone) as at) m
            ), cut as (
                select distinct greatest(usage.hours_to(case when m.changed then m.before else m.at end), first_hour) as from_at,
                       least(usage.hours_from(m.at), last_hour) as to_at
                  from midnight m
                 where not m.is_mark
            )
            select array_agg(c.from_at), array_agg(c.to_at),
                   (select array_agg(m.at) from midnight m where m.is_mark and usage.hour_of(m.at) <> m.at and m.at > first_hour and m.at < last_hour)
              into cuts_from, cuts_to, midnights
              from cut c
             where c.from_at < c.to_at;
            select array_agg(h.hour) into cut_hours
              from unnest(cuts_from, cuts_to) c (from_at, to_at), generate_series(c.from_at, c.to_at - interval '1 hour', interval '1 hour') h (hour);
            p.late_from := first_hour;
            p.late_to := least(last_hour, top);
            p.gap_from := cuts_from;
            p.gap_to := cuts_to;
            -- The window's ends, if they lie in an hour in which no clock is changed, nor in some around: each of its days is a part.
            if by_marks then
                p.zone := zone;
                p.frontier := top;
                p.reasons := '{}';
                select array_agg(1), array_agg(x.from_at), array_agg(x.to_at)
                  into p.cut_signs, p.cut_from, p.cut_to
                  from (values (since, first_hour), (last_hour, bound)) e (from_at, to_at),
                       lateral (select usage.hours_to(e.from_at) as hour) h,
                       lateral (select usage.day_start(usage.local_day(e.to_at - interval '1 microsecond', zone), zone) as midnight) m,
                       lateral (values (e.from_at, least(m.midnight, e.to_at)), (greatest(m.midnight, e.from_at), e.to_at)) x (from_at, to_at)
                 where x.from_at < x.to_at and e.to_at <= h.hour + interval '1 hour'
                   and ((h.hour + interval '4 hours') at time zone zone) - ((h.hour - interval '3 hours') at time zone zone) = interval '7 hours';
                ends_from := p.cut_from;
                p := usage.with_totals(p);
            end if;
            if since < first_hour and since <> all (coalesce(ends_from, '{}')) then
                raw_from := raw_from || since;
                raw_to := raw_to || first_hour;
            end if;
            if last_hour < bound and last_hour <> all (coalesce(ends_from, '{}')) then
                raw_from := raw_from || last_hour;
                raw_to := raw_to || bound;
            end if;
            raw_from := raw_from || cuts_from;
            raw_to := raw_to || (select array_agg(least(c.to_at, top) order by c.n) from unnest(cuts_to) with ordinality c (to_at, n));
            if collection is null and s.has_hourly_total then
                hours := format('select t.hour, t.resource_type, t.event_count, t.total_value from usage.hourly_total t'
                                ' where t.hour >= %L::timestamptz and t.hour < %L::timestamptz%s', first_hour, last_hour,
                                case when cut_hours is not null then format(' and t.hour <> all (%L::timestamptz[])', cut_hours) else '' end);
            else
                hours := format('select y.bucket, k.resource_type, sum(y.event_count), sum(y.total_value) from (%s) y join usage.key k on k.id = y.key_id group by 1, 2',
                                usage.hour_fact_sql('hourly_collection_fact', first_hour, last_hour, 1, usage.keys_of(collection, false), 'f.hour',
                                                    case when cut_hours is not null then format('f.hour <> all (%L::timestamptz[])', cut_hours) end));
            end if;
        else
            first_hour := null;
            raw_from := raw_from || since;
            raw_to := raw_to || bound;
        end if;
    end if;
    raw_from := raw_from || p.cut_from;
    raw_to := raw_to || p.cut_to;
    if exists (select from unnest(raw_from, raw_to) r (from_at, to_at)
                where r.from_at < s.sealed_until and coalesce(r.from_at < r.to_at, true)) then
        raise invalid_parameter_value using
            message = format('days of %s before %s cannot be told: they are sealed by days of %s, and their raw events may be gone', zone, s.sealed_until, s.time_zone);
    end if;
    return query execute format($query$
        select z.day, usage.day_label(z.day, $1), z.resource_type::text, sum(z.event_count)::bigint, sum(z.total_value)::float8
          from (select usage.local_day(e.created_at, $1) as day, e.resource_type, e.sign as event_count,
                       coalesce(usage.signed(e.sign, e.value), 0) as total_value
                  from %s e%s%s) z
         group by 1, 3
        having sum(z.event_count) <> 0
         order by 1 desc, z.resource_type::text collate "C" nulls last$query$,
        usage.measured_sql(
            array_fill(1, array[cardinality(raw_from) - coalesce(cardinality(p.cut_from), 0)]) || p.cut_signs, raw_from, raw_to, p.late_from, p.late_to,
            case when p.gap_from is not null then format('not exists (select from unnest(%L::timestamptz[], %L::timestamptz[]) g (from_at, to_at)'
                                                         ' where l.created_at >= g.from_at and l.created_at < g.to_at)', p.gap_from, p.gap_to) end,
            collection),
        case when hours is not null then format($query$
                union all
                select usage.local_day(h.hour + interval '59 minutes 59.999999 seconds', $1), h.resource_type, h.event_count, h.total_value
                  from (%s) h (hour, resource_type, event_count, total_value)$query$, hours) else '' end,
        case when by_marks then $query$
                union all
                select d.day, t.resource_type, d.sign * t.event_count, d.sign * t.total_value
                  from unnest($2) m (at),
                       lateral (values (usage.local_day(m.at - interval '1 microsecond', $1), 1), (usage.local_day(m.at, $1), -1)) d (day, sign),
                       lateral (select x.* from usage.mark_total x where x.at = m.at offset '0') t
                union all
                select h.day, t.resource_type, h.sign * t.event_count, h.sign * t.total_value
                  from unnest($3, $4, $5, $6) h (sign, from_hour, to_hour, day),
                       lateral (select x.* from usage.hourly_total x where x.hour >= h.from_hour and x.hour < h.to_hour offset '0') t
                union all
                select m.day, t.resource_type, m.sign * t.event_count, m.sign * t.total_value
                  from unnest($7, $8, $9) m (sign, at, day),
                       lateral (select x.* from usage.mark_total x where x.at = m.at offset '0') t$query$ else '' end)
    using zone, midnights, p.hour_signs, p.hours_from, p.hours_to, p.hour_days, p.mark_signs, p.marks, p.mark_days;
end $$;

select usage.restore_grants();
