-- Reads of one collection whose statement is planned once a session.

-- Measuring -------------------------------------------------------------------------------------------------------------------

create function usage.measured_text(value text, secondary text, events text) returns text
language sql immutable parallel safe
return format($sql$(
select n.sign, n.late, n.created_at, n.collection_id,
       usage.key_text(n.resource_type) collate "C" as resource_type,
       usage.key_text(n.job_type) collate "C" as job_type,
       usage.key_text(n.model_level) collate "C" as model_level,
       usage.in_bounds(n.value_number) as value,
       usage.in_bounds(n.secondary_number) as secondary,
       usage.is_rejected(n.value, usage.in_bounds(n.value_number))
           or usage.is_rejected(n.secondary, usage.in_bounds(n.secondary_number)) as rejected
  from (select j.*, usage.parsed_number(j.value) as value_number, usage.parsed_number(j.secondary) as secondary_number
          from (select r.sign, r.late, r.created_at, r.collection_id, r.resource_type,
                       r.detail ->> 'job_type' as job_type, r.detail ->> 'model_level' as model_level,
                       %s as value, %s as secondary
                  from (%s) r
                offset '0') j
        offset '0') n)$sql$, value, secondary, events);
comment on function usage.measured_text(text, text, text) is
'What to write in FROM for signed events with their key and values: a statement that gives the events r, and two expressions of r that find the JSON values. The metric expression''s one home.';

-- As before, but for what is in usage.measured_text().
create or replace function usage.measured_sql(
    signs integer[], starts timestamptz[], ends timestamptz[], late_from timestamptz, late_to timestamptz, late_where text, collection uuid)
returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    arms       text[] := '{}';
    value      text;
    secondary  text;
    of_one     constant text := case when collection is null then '' else format(' and %%s.collection_id = %L::uuid', collection) end;
begin
    for n in 1 .. cardinality(signs) loop
        if coalesce(starts[n] < ends[n], starts[n] is not null) and (cardinality(signs) <= 12 or ends[n] is null) then
            arms := arms || (format('select %s as sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail from %s',
                                    signs[n], usage.range_sql(starts[n], ends[n])) || format(of_one, 'e'));
        end if;
    end loop;
    if cardinality(signs) > 12 then  -- one by one by the index, all the same; the planner needs time for each arm
        arms := arms || format('select c.sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail'
                               ' from unnest(%L::integer[], %L::timestamptz[], %L::timestamptz[]) c (sign, from_at, to_at),'
                               ' lateral (select x.created_at, x.collection_id, x.resource_type, x.detail from usage.event() x'
                               ' where x.created_at >= c.from_at and x.created_at < c.to_at%s offset ''0'') e', signs, starts, ends, format(of_one, 'x'));
    end if;
    if late_from < late_to then
        arms := arms || (format('select l.sign::integer as sign, true as late, l.created_at, l.collection_id, l.resource_type, l.detail'
                                ' from usage.late_change l where l.created_at >= %L::timestamptz and l.created_at < %L::timestamptz',
                                late_from, late_to)
                         || coalesce(' and ' || late_where, '') || format(of_one, 'l'));
    end if;
    if arms = '{}' then
        arms := array['select 1 as sign, false as late, null::timestamptz as created_at, null::uuid as collection_id,'
                      ' null::text as resource_type, null::jsonb as detail where false'];
    end if;

    -- "when type then value", of each type; where it has had several definitions, by the instant.
    select string_agg(format(' when %L then %s', m.resource_type, m.value), ''),
           string_agg(format(' when %L then %s', m.resource_type, m.secondary), '') filter (where m.any_secondary)
      into value, secondary
      from (select d.resource_type, bool_or(d.secondary_key is not null) as any_secondary,
                   case when count(*) = 1 and bool_and(d.valid_to is null) then format('r.detail -> %L::text', min(d.value_key))
                        else format('case%s end', string_agg(format(' when r.created_at %s then r.detail -> %L::text', d.span, d.value_key), ''))
                   end as value,
                   case when count(*) = 1 and bool_and(d.valid_to is null) then format('r.detail -> %L::text', min(d.secondary_key))
                        else format('case%s end', string_agg(format(' when r.created_at %s then r.detail -> %L::text', d.span, d.secondary_key), ''))
                   end as secondary
              from (select f.resource_type, f.value_key, f.secondary_key, f.valid_to,
                           format('>= %L::timestamptz', f.valid_from)
                           || case when f.valid_to is null then '' else format(' and r.created_at < %L::timestamptz', f.valid_to) end as span
                      from usage.metric_definition f) d
             group by d.resource_type) m;

    return usage.measured_text(coalesce('case r.resource_type collate "C"' || value || ' end', 'null::jsonb'),
                               coalesce('case r.resource_type collate "C"' || secondary || ' end', 'null::jsonb'),
                               array_to_string(arms, ' union all '));
end $$;
comment on function usage.measured_sql(integer[], timestamptz[], timestamptz[], timestamptz, timestamptz, text, uuid) is
'What to write in FROM for the signed events of some ranges with their key and values: ranges of raw events, each with a sign (end null: open; empty ones are left out), and one of late changes with a condition on l (null: none); of one collection or (null) all.';

-- As before, but late changes are looked for by min(), which goes by the index: for EXISTS the planner may read the table from its
-- beginning, as it expects to come across one soon, where those of the window may be the last.
create or replace function usage.window_events_sql(p usage.window_parts, collection uuid) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    any_late constant boolean := coalesce((select min(l.created_at) from usage.late_change l where l.created_at >= p.late_from) < p.late_to, false);
begin
    if any_late or cardinality(p.cut_signs) > 0 or p.head_from < p.head_to or p.foot_from < p.foot_to or p.tail_from is not null then
        return usage.measured_sql(
            array[p.head_sign, p.foot_sign, 1] || p.cut_signs,
            array[case when p.head_from < p.head_to then p.head_from end, case when p.foot_from < p.foot_to then p.foot_from end, p.tail_from] || p.cut_from,
            array[p.head_to, p.foot_to, p.tail_to] || p.cut_to,
            case when any_late then p.late_from end, case when any_late then p.late_to end,
            (select string_agg(format('not (l.created_at >= %L::timestamptz and l.created_at < %L::timestamptz)', g.from_at, g.to_at), ' and ')
               from unnest(p.gap_from, p.gap_to) g (from_at, to_at)),
            collection);
    end if;
    return null;
end $$;

-- One collection --------------------------------------------------------------------------------------------------------------

-- usage.window_rows() writes a statement for each window, and planning it takes longer than reading one collection. What is
-- read of one collection is the same whatever the window: some months, days and hours of the rollups by their keys, some ranges
-- of events. So here ranges are parameters of one statement, which a session plans once. That is no worse only where the plan
-- does not depend on how long the ranges are: with an index that leads to the collection's events of a range. The fences keep it
-- to look rows up one by one, as it is planned without knowing how many.
--
-- The statement is made here, from usage.measured_text(): whoever changes that makes this function anew.
do $do$
declare
    body text;
begin
    select string_agg(format($query$
    %s
        return query
        select r.resource_type::text, r.job_type::text, r.model_level::text,
               sum(r.event_count)::bigint, sum(r.total_value), sum(r.secondary_value)
          from (select k.resource_type, %s, y.event_count, y.total_value, y.secondary_value
                  from (select f.key_id, sum(f.event_count)::bigint as event_count, sum(f.total_value) as total_value,
                               sum(f.secondary_value) as secondary_value
                          from (select f.key_id, f.event_count, f.total_value, f.secondary_value
                                  from unnest(months) b (month),
                                       lateral (select x.* from usage.monthly_%s x where x.month = b.month and x.key_id = any (keys) offset '0') f
                                union all
                                select f.key_id, b.sign * f.event_count, b.sign * f.total_value, b.sign * f.secondary_value
                                  from unnest(days, day_signs) b (day, sign),
                                       lateral (select x.* from usage.daily_%s x where x.day = b.day and x.key_id = any (keys) offset '0') f
                                union all
                                select f.key_id, b.sign * f.event_count, b.sign * f.total_value, b.sign * f.secondary_value
                                  from unnest(hours, hour_signs) b (hour, sign),
                                       lateral (select x.* from usage.hourly_%s x where x.hour = b.hour and x.key_id = any (keys) offset '0') f) f
                         group by f.key_id) y,
                       lateral (select x.resource_type, x.job_type, x.model_level from usage.key x where x.id = y.key_id offset '0') k
                union all
                select e.resource_type, %s,
                       e.sign, coalesce(usage.signed(e.sign, e.value), 0), coalesce(usage.signed(e.sign, e.secondary), 0)
                  from %s e) r
         where %s
         group by 1, 2, 3
        having sum(r.event_count) <> 0;$query$,
               l.condition, l.of_key, l.level, l.level, l.level, l.of_event,
               usage.measured_text('r.detail -> (value_keys ->> r.resource_type)', 'r.detail -> (secondary_keys ->> r.resource_type)', $events$
                        select c.sign, false as late, x.created_at, x.collection_id, x.resource_type, x.detail
                          from unnest(signs, starts, ends) c (sign, from_at, to_at),
                               lateral (select e.created_at, e.collection_id, e.resource_type, e.detail
                                          from usage.event() e
                                         where e.collection_id = collection
                                           and e.created_at >= c.from_at and e.created_at < c.to_at
                                        offset '0') x
                        union all
                        select 1, false, e.created_at, e.collection_id, e.resource_type, e.detail
                          from usage.event() e
                         where e.collection_id = collection and e.created_at >= open_from
                        union all
                        select l.sign::integer, true, l.created_at, l.collection_id, l.resource_type, l.detail
                          from usage.late_change l
                         where l.collection_id = collection and l.created_at >= p.late_from and l.created_at < p.late_to
                           and not exists (select from unnest(p.gap_from, p.gap_to) g (from_at, to_at)
                                            where l.created_at >= g.from_at and l.created_at < g.to_at)$events$),
               l.filter), '' order by l.n)
      into body
      from (values (1, 'if ai then', 'fact', 'k.job_type, k.model_level', 'e.job_type, e.model_level', 'r.resource_type = ''ai'''),
                   (2, 'else', 'collection_fact', 'null::text as job_type, null::text as model_level', 'null::text, null::text', 'true'))
               l (n, condition, level, of_key, of_event, filter);
    execute format($function$
create function usage.planned_rows(
    p usage.window_parts, collection uuid, ai boolean, keys integer[], value_keys jsonb, secondary_keys jsonb)
returns table (resource_type text, job_type text, model_level text,
               event_count bigint, total_value numeric, secondary_value numeric)
language plpgsql stable security definer rows 10
set search_path = pg_catalog, pg_temp set jit = off set row_security = off
set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    months     constant date[] := array(select g::date from generate_series(p.month_from::timestamp, (p.month_to - 1)::timestamp, interval '1 month') g);
    days       date[];
    day_signs  integer[];
    hours      timestamptz[];
    hour_signs integer[];
    signs      constant integer[] := array[p.head_sign, p.foot_sign, 1] || p.cut_signs;
    starts     constant timestamptz[] := array[p.head_from, p.foot_from, p.tail_from] || p.cut_from;
    ends       constant timestamptz[] := array[p.head_to, p.foot_to, p.tail_to] || p.cut_to;
    open_from  constant timestamptz := case when p.tail_to is null then p.tail_from end;
begin
    select array_agg(r.from_day + n), array_agg(r.sign) into days, day_signs
      from (values (p.left_from, p.left_to, p.left_sign), (p.right_from, p.right_to, p.right_sign)) r (from_day, to_day, sign),
           generate_series(0, r.to_day - r.from_day - 1) n;
    if p.hour_signs is not null then
        select array_agg(g), array_agg(h.sign) into hours, hour_signs
          from unnest(p.hour_signs, p.hours_from, p.hours_to) h (sign, from_hour, to_hour),
               generate_series(h.from_hour, h.to_hour - interval '1 hour', interval '1 hour') g;
    end if;%s
    end if;
end $$$function$, body);
end $do$;
comment on function usage.planned_rows(usage.window_parts, uuid, boolean, integer[], jsonb, jsonb) is
'Sums of a window of one collection by resource type, or of its AI events by job type and model level, by one statement that a session plans once. keys: of the collection, as usage.keys_of() gives them; value_keys, secondary_keys: of each resource type, by name.';

create function usage.collection_rows(since timestamptz, until timestamptz, collection uuid, ai boolean)
returns table (collection_id uuid, resource_type text, job_type text, model_level text,
               event_count bigint, total_value numeric, secondary_value numeric)
language plpgsql stable security definer rows 10 set search_path = pg_catalog, pg_temp
as $$
declare
    value_keys     jsonb;
    secondary_keys jsonb;
    keys           integer[];
    p              usage.window_parts;
    last           date;
    at_most        integer;
begin
    -- One definition of each metric, of all times; a table that is not distributed, nor partitioned, for a plan that is made
    -- once has all partitions; and the index.
    select jsonb_object_agg(m.resource_type, m.value_key), jsonb_object_agg(m.resource_type, m.secondary_key)
      into value_keys, secondary_keys
      from usage.metric m
     where not exists (select from usage.metric_history)
       and exists (select from pg_index i
                    where i.indrelid = (select s.source_oid from usage.state s where not s.distributed)
                      and i.indisvalid and i.indpred is null
                      and pg_relation_filenode(i.indexrelid) is not null
                      and pg_index_column_has_property(i.indexrelid, 1, 'orderable')
                      and pg_get_indexdef(i.indexrelid, 1, false) = 'collection_id'
                      and pg_get_indexdef(i.indexrelid, 2, false) = 'created_at');
    if value_keys is not null then
        p := usage.window_parts(since, until);
        keys := usage.keys_of(collection, ai);
        last := usage.next_day(usage.local_day(p.frontier, p.zone));  -- no rollup row lies past the frontier's day
        p.month_to := least(p.month_to, usage.next_month(usage.month_of(last)));
        p.left_to := least(p.left_to, last);
        p.right_to := least(p.right_to, last);
        -- As usage.fact_sql(): 20,000 rows are looked up at most, here of two months' days, two days' hours and as many months.
        at_most := 20000 / greatest(cardinality(keys), 1) - 2 * 31 - 2 * 25;
        if at_most >= 0 and coalesce(p.month_to <= p.month_from + at_most * 28, true) then
            return query select collection, r.* from usage.planned_rows(p, collection, ai, keys, value_keys, secondary_keys) r;
            return;
        end if;
    end if;
    return query
        select r.collection_id, r.resource_type, r.job_type, r.model_level, r.event_count, r.total_value, r.secondary_value
          from usage.window_rows(since, until, collection, not ai, ai, false, false) r;
end $$;
comment on function usage.collection_rows(timestamptz, timestamptz, uuid, boolean) is
'Sums of the window [since, until) of one collection by resource type, or of its AI events by job type and model level: by usage.planned_rows() where that may be, else by usage.window_rows().';

create or replace function usage.by_collection(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (collection_id uuid, collection_title text, resource_type text, event_count bigint,
               total_value float8, secondary_value float8)
language sql stable security definer set search_path = pg_catalog, pg_temp set row_security = off
as $$
    select r.collection_id, c.title, r.resource_type, r.event_count,
           r.total_value::float8 as total_value, r.secondary_value::float8
      from (select o.*
              from usage.collection_rows(since, until, collection, false) o
             where collection is not null
            union all
            select w.collection_id, w.resource_type, w.job_type, w.model_level, w.event_count, w.total_value, w.secondary_value
              from usage.window_rows(since, until, null, true, false, false, false) w
             where collection is null and w.section = 'by_collection') r
      left join usage.collection() c on c.id = r.collection_id
     order by total_value desc, r.collection_id nulls last, r.resource_type collate "C" nulls last
$$;

create or replace function usage.ai_drilldown(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (collection_id uuid, collection_title text, job_type text, model_level text,
               tokens_in numeric, tokens_out numeric, event_count bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp set row_security = off
as $$
    select r.collection_id, c.title, r.job_type, r.model_level,
           round(r.total_value) as tokens_in, round(r.secondary_value), r.event_count
      from (select o.*
              from usage.collection_rows(since, until, collection, true) o
             where collection is not null
            union all
            select w.collection_id, w.resource_type, w.job_type, w.model_level, w.event_count, w.total_value, w.secondary_value
              from usage.window_rows(since, until, null, false, true, false, false) w
             where collection is null and w.section = 'ai_drilldown') r
      left join usage.collection() c on c.id = r.collection_id
     order by tokens_in desc, r.collection_id nulls last,
              r.job_type collate "C" nulls last, r.model_level collate "C" nulls last
$$;

select usage.restore_grants();
