-- One general question: sums by any of the keys, by day, week, month or not at all, beside the window before.

create function usage.bucket_of(day date, grain text) returns date
language sql immutable parallel safe
return case grain
    when 'day' then day
    when 'week' then case when pg_catalog.isfinite(day) then pg_catalog.date_trunc('week', day::timestamp)::date else day end
    when 'month' then usage.month_of(day)
end;
comment on function usage.bucket_of(date, text) is
'The bucket that a local day lies in: the day, the Monday of its ISO week, or the first of its month; null for grain none.';

-- The same parts as usage.window_rows(), for any keys and one grain. Days are taken from the coarsest rollup that has the
-- keys, months only where no bucket cuts them. The resource type is a key always: units do not add up.
create function usage.window_sums(
    since timestamptz, until timestamptz, collection uuid,
    by_collection boolean, by_job_type boolean, by_model_level boolean, grain text)
returns table (bucket date, collection_id uuid, resource_type text, job_type text, model_level text,
               event_count numeric, total_value numeric, secondary_value numeric)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off
as $$
declare
    p         usage.window_parts := usage.window_parts(since, until);
    by_key    boolean := by_job_type or by_model_level;
    by_total  boolean := not by_key and not by_collection and collection is null;
    by_months boolean := grain in ('none', 'month') and not by_total;
begin
    return query execute $query$
    select z.bucket, z.collection_id, z.resource_type::text, z.job_type::text, z.model_level::text,
           sum(z.event_count), sum(z.total_value), sum(z.secondary_value)
      from (select case when $26 <> 'none' then usage.bucket_of(usage.local_day(e.created_at, $11), $26) end as bucket,
                   case when $1 then e.collection_id end as collection_id, e.resource_type,
                   case when $2 then e.job_type end as job_type, case when $3 then e.model_level end as model_level,
                   e.sign::bigint as event_count,
                   coalesce(usage.signed(e.sign, e.value), 0) as total_value,
                   coalesce(usage.signed(e.sign, e.secondary), 0) as secondary_value
              from usage.measured($4, $5, $6, $7, $8, $9, $10, $12, $13, $14, null) e
             where $15 is null or e.collection_id = $15
            union all
            select y.bucket, case when $1 then y.collection_id end, y.resource_type,
                   case when $2 then y.job_type end, case when $3 then y.model_level end,
                   y.event_count, y.total_value, y.secondary_value
              from (select usage.bucket_of(m.month, $26) as bucket, m.collection_id, m.resource_type, m.job_type, m.model_level,
                           m.event_count, m.total_value, m.secondary_value
                      from usage.monthly m where $27 and $29 and m.month >= $16 and m.month < $17
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, d.job_type, d.model_level,
                           $18 * d.event_count, usage.signed($18, d.total_value), usage.signed($18, d.secondary_value)
                      from usage.daily d where $27 and $29 and d.day >= $19 and d.day < $20
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, d.job_type, d.model_level,
                           $21 * d.event_count, usage.signed($21, d.total_value), usage.signed($21, d.secondary_value)
                      from usage.daily d where $27 and $29 and d.day >= $22 and d.day < $23
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, d.job_type, d.model_level,
                           d.event_count, d.total_value, d.secondary_value
                      from usage.daily d where $27 and not $29 and d.day >= $24 and d.day < $25
                    union all
                    select usage.bucket_of(m.month, $26), m.collection_id, m.resource_type, null, null,
                           m.event_count, m.total_value, m.secondary_value
                      from usage.monthly_collection m where not $27 and $29 and m.month >= $16 and m.month < $17
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, null, null,
                           $18 * d.event_count, usage.signed($18, d.total_value), usage.signed($18, d.secondary_value)
                      from usage.daily_collection d where not $27 and $29 and d.day >= $19 and d.day < $20
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, null, null,
                           $21 * d.event_count, usage.signed($21, d.total_value), usage.signed($21, d.secondary_value)
                      from usage.daily_collection d where not $27 and $29 and d.day >= $22 and d.day < $23
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, null, null,
                           d.event_count, d.total_value, d.secondary_value
                      from usage.daily_collection d where not $27 and not $28 and not $29 and d.day >= $24 and d.day < $25
                    union all
                    select usage.bucket_of(t.day, $26), null, t.resource_type, null, null,
                           t.event_count, t.total_value, t.secondary_value
                      from usage.daily_total t where $28 and t.day >= $24 and t.day < $25) y
             where $15 is null or y.collection_id = $15) z
     group by 1, 2, 3, 4, 5
    having sum(z.event_count) <> 0
    $query$
    using by_collection, by_job_type, by_model_level,                                   -- 1-3
          p.head_sign, p.head_from, p.head_to, p.foot_sign, p.foot_from, p.foot_to,     -- 4-9
          p.tail_from, p.zone, p.tail_to, p.late_from, p.late_to, collection,           -- 10-15
          p.month_from, p.month_to, p.left_sign, p.left_from, p.left_to,                -- 16-20
          p.right_sign, p.right_from, p.right_to, p.day_from, p.day_to,                 -- 21-25
          grain, by_key, by_total, by_months;                                           -- 26-29
end $$;
comment on function usage.window_sums(timestamptz, timestamptz, uuid, boolean, boolean, boolean, text) is
'Exact sums of [since, until) by resource type, by the other keys asked for, and by buckets of a grain (none, day, week, month).';

create function usage.window_before(since timestamptz, until timestamptz, grain text, zone text,
                                    out since_before timestamptz, out shift interval)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    from_at  timestamp := since at time zone zone;
    until_at timestamp := until at time zone zone;
begin
    if not (isfinite(since) and isfinite(until)) or since < '0002-01-01 00:00:00+00' or until > '9999-01-01 00:00:00+00' then
        return;
    end if;
    if grain = 'month' then
        shift := date_trunc('month', age(until_at, from_at));
        if shift < interval '1 month' or from_at + shift <> until_at then
            shift := null;
        end if;
    else
        shift := until_at - from_at;
        if grain in ('day', 'week') and shift <> date_trunc('day', shift) or grain = 'week' and extract(day from shift) % 7 <> 0 then
            shift := null;
        end if;
    end if;
    if from_at - shift > '0001-01-03'::timestamp then
        since_before := (from_at - shift) at time zone zone;
    else
        shift := null;
    end if;
end $$;
comment on function usage.window_before(timestamptz, timestamptz, text, text) is
'Where the window before [since, until) begins, which ends at since, and how far each of its buckets lies before its counterpart: the same wall clock time, as many days or (grain month) months earlier. Null where the window is no whole number of buckets.';

-- by is a reserved word of plpgsql, where it is assigned to: quoted there.
create function usage.totals(
    since timestamptz, until timestamptz default null, by text[] default '{}', grain text default 'none',
    fill boolean default false, collection uuid default null)
returns table (bucket date, starts_at timestamptz, collection_id uuid, collection_title text, resource_type text,
               job_type text, model_level text, event_count bigint, total_value float8, secondary_value float8,
               unit text, secondary_unit text,
               event_count_before bigint, total_value_before float8, secondary_value_before float8)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off set datestyle = 'ISO, YMD'
as $$
#variable_conflict use_column
declare
    keys      constant text[] := array['collection', 'resource_type', 'job_type', 'model_level'];
    zone      constant text := (select s.time_zone from usage.state s);
    wrong     text;
    before    record;
    first_in  date;
    last_in   date;
    buckets   bigint;
begin
    select min(k) into wrong from unnest(by) k where k <> all (keys) or k is null;
    if wrong is not null or array_position(by, null) is not null then
        raise invalid_parameter_value using
            message = format('by: there is no key %s; there are %s', coalesce(quote_literal(wrong), 'NULL'), array_to_string(keys, ', '));
    elsif grain = 'hour' then
        raise invalid_parameter_value using message = 'grain: there is no hourly rollup; use day, week, month or none';
    elsif grain is null or grain not in ('none', 'day', 'week', 'month') then
        raise invalid_parameter_value using
            message = format('grain: there is no %s; there are day, week, month and none', coalesce(quote_literal(grain), 'NULL'));
    elsif since is null then
        raise invalid_parameter_value using message = 'since: must not be null; use -infinity for all there is';
    elsif since >= until then
        raise invalid_parameter_value using message = 'since must be before until';
    end if;
    fill := coalesce(fill, false);
    "by" := coalesce(by, '{}');
    select * into before from usage.window_before(since, coalesce(until, greatest(now(), since)), grain, zone);
    if fill and grain <> 'none' and isfinite(since) then
        first_in := usage.bucket_of(usage.local_day(since, zone), grain);
    end if;
    if fill and grain <> 'none' and isfinite(coalesce(until, now())) then
        last_in := usage.bucket_of(usage.local_day(coalesce(until - interval '1 microsecond', greatest(now(), since)), zone), grain);
    end if;
    if fill and last_in - first_in > 40000 then
        raise invalid_parameter_value using
            message = format('fill: that would be the days from %s to %s; ask for a shorter window', first_in, last_in);
    end if;

    return query
    with part as materialized (
        select w.bucket, w.collection_id, w.resource_type, w.job_type, w.model_level,
               w.event_count, w.total_value, w.secondary_value,
               0::numeric as event_count_before, 0::numeric as total_value_before, 0::numeric as secondary_value_before
          from usage.window_sums(since, until, collection, 'collection' = any (by), 'job_type' = any (by),
                                 'model_level' = any (by), grain) w
        union all
        select (w.bucket + before.shift)::date, w.collection_id, w.resource_type, w.job_type, w.model_level,
               0, 0, 0, w.event_count, w.total_value, w.secondary_value
          from usage.window_sums(before.since_before, since, collection, 'collection' = any (by), 'job_type' = any (by),
                                 'model_level' = any (by), grain) w
         where before.shift is not null
    ), held as (
        -- Where sealed days were added up by another definition: "characters / seconds", as the receipt says.
        select d.resource_type, string_agg(distinct d.unit, ' / ') as unit, string_agg(distinct d.secondary_unit, ' / ') as secondary_unit
          from usage.metric_definition d
         where (d.valid_to is null or d.valid_to > coalesce(before.since_before, since)) and (until is null or d.valid_from < until)
         group by d.resource_type
    ), typed as (
        select case when 'resource_type' = any (by) then p.resource_type end as resource_type, m.unit, m.secondary_unit, p.bucket,
               p.collection_id, p.job_type, p.model_level,
               p.event_count, p.total_value, p.secondary_value,
               p.event_count_before, p.total_value_before, p.secondary_value_before
          from part p
          left join held m on m.resource_type = p.resource_type collate "C"
    ), united as (
        -- The unit of a group, in this window and in the one before: sums of different units are none. A type without
        -- metric adds 0 to any.
        select t.bucket, t.collection_id, t.resource_type, t.job_type, t.model_level,
               sum(t.event_count)::bigint as event_count, sum(t.total_value) as total_value, sum(t.secondary_value) as secondary_value,
               sum(t.event_count_before)::bigint as event_count_before, sum(t.total_value_before) as total_value_before,
               sum(t.secondary_value_before) as secondary_value_before,
               array_agg(distinct t.unit) filter (where t.event_count <> 0 and t.unit is not null) as units,
               array_agg(distinct t.secondary_unit) filter (where t.event_count <> 0 and t.secondary_unit is not null) as secondary_units,
               array_agg(distinct t.unit) filter (where t.event_count_before <> 0 and t.unit is not null) as units_before,
               array_agg(distinct t.secondary_unit) filter (where t.event_count_before <> 0 and t.secondary_unit is not null)
                   as secondary_units_before
          from typed t
         group by 1, 2, 3, 4, 5
        having fill or sum(t.event_count) <> 0
    ), summed as materialized (
        select u.bucket, u.collection_id, u.resource_type, u.job_type, u.model_level, u.event_count,
               case when coalesce(cardinality(u.units), 0) < 2 then u.total_value end as total_value,
               case when coalesce(cardinality(u.secondary_units), 0) < 2 then u.secondary_value end as secondary_value,
               case when cardinality(coalesce(u.units, u.units_before)) = 1
                    then (coalesce(u.units, u.units_before))[1] end as unit,
               case when cardinality(coalesce(u.secondary_units, u.secondary_units_before)) = 1
                    then (coalesce(u.secondary_units, u.secondary_units_before))[1] end as secondary_unit,
               case when before.shift is not null then u.event_count_before end as event_count_before,
               case when before.shift is not null and coalesce(cardinality(u.units_before), 0) < 2
                     and (u.units is null or u.units_before is null or u.units = u.units_before)
                    then u.total_value_before end as total_value_before,
               case when before.shift is not null and coalesce(cardinality(u.secondary_units_before), 0) < 2
                     and (u.secondary_units is null or u.secondary_units_before is null or u.secondary_units = u.secondary_units_before)
                    then u.secondary_value_before end as secondary_value_before
          from united u
    ), filled as (
        select b.bucket, k.collection_id, k.resource_type, k.job_type, k.model_level, k.unit, k.secondary_unit
          from (select usage.bucket_of(d.day::date, grain) as bucket
                  from generate_series(coalesce(first_in, (select min(s.bucket) from summed s where isfinite(s.bucket)))::timestamp,
                                       coalesce(last_in, (select max(s.bucket) from summed s where isfinite(s.bucket)))::timestamp,
                                       case grain when 'month' then interval '1 month' when 'week' then interval '7 days'
                                                  else interval '1 day' end) d (day)
                 where fill and grain <> 'none') b,
               (select s.collection_id, s.resource_type, s.job_type, s.model_level, min(s.unit) as unit, min(s.secondary_unit) as secondary_unit
                  from summed s group by 1, 2, 3, 4
                union
                select null, null, null, null, null, null where by = '{}' and not exists (select from summed)) k
         where not exists (select from summed s
                            where s.bucket = b.bucket and s.collection_id is not distinct from k.collection_id
                              and s.resource_type is not distinct from k.resource_type
                              and s.job_type is not distinct from k.job_type and s.model_level is not distinct from k.model_level)
    ), whole as (
        select s.bucket, s.collection_id, s.resource_type, s.job_type, s.model_level, s.event_count, s.total_value, s.secondary_value,
               s.unit, s.secondary_unit, s.event_count_before, s.total_value_before, s.secondary_value_before
          from summed s
        union all
        select f.bucket, f.collection_id, f.resource_type, f.job_type, f.model_level, 0, 0, 0, f.unit, f.secondary_unit,
               case when before.shift is not null then 0 end, case when before.shift is not null then 0 end,
               case when before.shift is not null then 0 end
          from filled f
        union all  -- the sum of nothing, as in SQL
        select null, null, null, null, null, 0, 0, 0, null, null,
               case when before.shift is not null then 0 end, case when before.shift is not null then 0 end,
               case when before.shift is not null then 0 end
         where by = '{}' and grain = 'none' and not exists (select from summed)
    )
    select w.bucket, usage.day_label(w.bucket, zone), w.collection_id, c.title, w.resource_type::text, w.job_type::text, w.model_level::text,
           w.event_count, w.total_value::float8, w.secondary_value::float8, w.unit, w.secondary_unit,
           w.event_count_before, w.total_value_before::float8, w.secondary_value_before::float8
      from whole w
      left join usage.collection() c on c.id = w.collection_id
     order by w.bucket, w.total_value::float8 desc nulls last, case when w.total_value is null then w.event_count end desc,
              w.collection_id nulls last,
              w.resource_type collate "C" nulls last, w.job_type collate "C" nulls last, w.model_level collate "C" nulls last;
end $$;
comment on function usage.totals(timestamptz, timestamptz, text[], text, boolean, uuid) is
'Usage in [since, until) by any of collection, resource_type, job_type, model_level and by grain (none, day, week, month), beside the window before; exact in this snapshot. Values are null where units differ. fill: zeros for gaps, and for keys that only the window before has.';

-- Exact decimals, for exports: trim_scale, because what was added and taken off again leaves zeros behind the point, and a
-- window reads the same whatever has been refreshed. The result goes to a tuplestore: over work_mem it lies on disk.
create function usage.export_rows(
    since timestamptz, until timestamptz default null, grain text default 'day', collection uuid default null)
returns table (bucket date, collection_id uuid, collection_title text, resource_type text, job_type text, model_level text,
               event_count bigint, total_value numeric, secondary_value numeric, unit text, secondary_unit text)
language sql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off
as $$
    select w.bucket, w.collection_id, c.title, w.resource_type, w.job_type, w.model_level, w.event_count::bigint,
           trim_scale(w.total_value), trim_scale(w.secondary_value), m.unit, m.secondary_unit
      from usage.window_sums(since, until, collection, true, true, true, grain) w
      left join usage.metric_definition m  -- the one that holds for the whole bucket, if there is one
        on m.resource_type = w.resource_type collate "C"
       and coalesce(w.bucket, '-infinity') >= m.day_from
       and (m.day_to is null or case grain when 'day' then w.bucket when 'week' then w.bucket + 6
                                           when 'month' then usage.next_month(w.bucket) - 1 else 'infinity' end < m.day_to)
      left join usage.collection() c on c.id = w.collection_id
     order by w.bucket, w.collection_id nulls last,
              w.resource_type collate "C" nulls last, w.job_type collate "C" nulls last, w.model_level collate "C" nulls last
$$;
comment on function usage.export_rows(timestamptz, timestamptz, text, uuid) is
'Usage in [since, until) by bucket of a grain (day, week, month, none) and whole key, with title and units: exact decimals, oldest bucket first; exact in this snapshot.';

-- Comments that BI tools show, on every column that had none.
do $$
declare
    described record;
    span      text;
begin
    for described in
        select c.oid::regclass::text as relation, a.attname::text as name,
               case a.attname
                    when 'month' then 'First day of the local month in the reporting zone; -infinity / infinity outside years 1-9999.'
                    when 'collection_id' then 'Collection, or null.'
                    when 'collection_title' then 'Title of the collection, or null'
                        || case c.relkind when 'm' then '; as of the refresh of this view.' else ', as it is now.' end
                    when 'resource_type' then 'Resource type, or null; long text is abridged.'
                    when 'job_type' then 'detail->>job_type, or null; long text is abridged.'
                    when 'model_level' then 'detail->>model_level, or null; long text is abridged.'
                    when 'event_count' then 'Number of events.'
                    when 'total_value' then 'Exact sum, in unit.'
                    when 'rejected_count' then 'Events with a value that is no number: counted, adding 0.'
                    when 'unit' then 'Unit of total_value; null where the type has no metric.'
                    when 'secondary_unit' then 'Unit of secondary_value; null where the type has none.'
               end as text
          from pg_class c
          join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
         where c.oid = any (array['usage.daily_live', 'usage.monthly_live', 'usage.trailing', 'usage.monthly_ranking']::regclass[])
           and col_description(c.oid, a.attnum) is null
    loop
        if described.text is not null then
            execute format('comment on column %s.%I is %L', described.relation, described.name, described.text);
        end if;
    end loop;
    foreach span in array array['1d', '7d', '30d', '90d', '365d', 'previous_30d'] loop
        execute format('comment on column usage.trailing.%I is %L', 'event_count_' || span,
                       'Number of events' || case span when 'previous_30d' then ' of days 60 to 31 before as_of_day.'
                       else format(' of the last %s whole days before as_of_day.', rtrim(span, 'd')) end);
        execute format('comment on column usage.trailing.%I is %L', 'total_value_' || span,
                       'Exact sum, in unit,' || case span when 'previous_30d' then ' of days 60 to 31 before as_of_day, to compare the last 30 with.'
                       else format(' of the last %s whole days before as_of_day.', rtrim(span, 'd')) end);
        execute format('comment on column usage.trailing.%I is %L', 'secondary_value_' || span,
                       'Exact sum, in secondary_unit,' || case span when 'previous_30d' then ' of days 60 to 31 before as_of_day.'
                       else format(' of the last %s whole days before as_of_day.', rtrim(span, 'd')) end);
    end loop;
end $$;
comment on column usage.freshness.as_of is 'The moment of this read.';
comment on column usage.freshness.attached is 'Whether capture is on: aggregator attach.';
comment on column usage.freshness.time_zone is 'Reporting time zone, an IANA name; days and months are local to it.';
comment on column usage.freshness.frontier is 'Events below this instant are in the rollups; -infinity before the first refresh.';
comment on column usage.freshness.sealed_until is 'Below this instant the rollups are the record: raw rows may be gone; -infinity: nothing is sealed.';
comment on column usage.freshness.last_refreshed is 'When a refresh last finished well.';
comment on column usage.freshness.last_verified is 'When rollups were last found equal to the raw events, or made so.';
comment on column usage.pending.sign is '1: the event is to be added; -1: to be taken off.';
comment on column usage.pending.created_at is 'Instant of the event.';
comment on column usage.pending.collection_id is 'Collection, or null.';
comment on column usage.pending.resource_type is 'Resource type, or null, as the source has it.';
comment on column usage.pending.detail is 'The event''s detail, as the source has it.';
comment on column usage.rejected_event.created_at is 'Instant of the event.';
comment on column usage.rejected_event.collection_id is 'Collection, or null.';
comment on column usage.rejected_event.resource_type is 'Resource type, as the source has it.';
comment on column usage.rejected_event.detail is 'The event''s detail, as the source has it.';
comment on column usage.restatement.restated_at is 'When it was changed.';
comment on column usage.restatement.collection_id is 'Collection, or null.';
comment on column usage.restatement.resource_type is 'Resource type, or null; long text is abridged.';
comment on column usage.restatement.job_type is 'detail->>job_type, or null; long text is abridged.';
comment on column usage.restatement.model_level is 'detail->>model_level, or null; long text is abridged.';
comment on column usage.restatement.reason is 'late, deleted, redefined (a metric was changed) or repaired (by verify).';
comment on column usage.restatement.id is 'Number, in order of time.';
comment on column usage.refresh_run.id is 'Number, in order of time.';
comment on column usage.refresh_run.started_at is 'When it began.';
comment on column usage.refresh_run.finished_at is 'When it ended; null: it runs, or was killed.';
comment on column usage.verification.id is 'Number, in order of time.';
comment on column usage.verification.verified_at is 'When it was compared.';
comment on column usage.truncate_marker.id is 'Number, in order of time.';
comment on column usage.truncate_marker.happened_at is 'When the source was truncated.';
comment on column usage.metric_history.id is 'Number, in order of time.';
comment on column usage.state.id is 'True: there is one row.';
comment on column usage.health_limit.id is 'True: there is one row.';
comment on column usage.alembic_version.version_num is 'The revision that schema usage is at.';

select usage.restore_grants();
