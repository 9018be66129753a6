-- SQL of a source that Citus distributes. Citus plans no SQL function that it finds only once it is inlined, so the functions
-- that know the source are plpgsql here, and take a range along: it goes to the workers, and only its rows, or sums, come back.

-- event_body --
begin
    return query select e.created_at::pg_catalog.timestamptz, e.collection_id::pg_catalog.uuid, e.resource_type::pg_catalog.text,
                        e.detail::pg_catalog.jsonb from {source} e;
end

-- event_function --
create or replace function usage.event()
returns table (created_at timestamptz, collection_id uuid, resource_type text, detail jsonb)
language plpgsql stable set search_path = pg_catalog, pg_temp as {body}

-- event_between_body --
begin
    if since is null then
        return;
    elsif until is null then
        return query execute 'select e.created_at::pg_catalog.timestamptz, e.collection_id::pg_catalog.uuid, e.resource_type::pg_catalog.text,'
                             ' e.detail::pg_catalog.jsonb from ' || {name} || ' e where e.created_at >= $1' using since;
    elsif since < until then
        return query execute 'select e.created_at::pg_catalog.timestamptz, e.collection_id::pg_catalog.uuid, e.resource_type::pg_catalog.text,'
                             ' e.detail::pg_catalog.jsonb from ' || {name} || ' e where e.created_at >= $1 and e.created_at < $2' using since, until;
    end if;
end

-- event_between_function --
create or replace function usage.event_between(since timestamptz, until timestamptz)
returns table (created_at timestamptz, collection_id uuid, resource_type text, detail jsonb)
language plpgsql stable set search_path = pg_catalog, pg_temp as {body}

-- next_event_body --
declare
    found timestamptz;
begin
    if until is null then
        execute 'select min(e.created_at) from ' || {name} || ' e where e.created_at >= $1' into found using since;
    else
        execute 'select min(e.created_at) from ' || {name} || ' e where e.created_at >= $1 and e.created_at < $2' into found using since, until;
    end if;
    return found;
end

-- nth_event_body --
-- By counts of days, which the workers work out, two months from the first event on at a time. At least one whole day.
declare
    zone    constant text := (select s.time_zone from usage.state s);
    first   timestamptz := usage.next_event(since, until);
    horizon timestamptz;
    stop    date;
begin
    if first is null then
        return null;
    end if;
    horizon := case when first > '9999-01-01' then 'infinity'
                    else greatest(first + interval '62 days', usage.day_start(usage.next_day(usage.local_day(first, zone)), zone)) end;
    horizon := usage.day_start(usage.local_day(least(horizon, until), zone), zone);
    execute 'select min(c.day) from (select d.day, sum(d.events) over (order by d.day) as events from ('
            ' select usage.local_day(e.created_at, $3) as day, count(*) as events from ' || {name} || ' e'
            ' where e.created_at >= $1 and e.created_at < $2 group by 1) d) c where c.events > $4'
       into stop using first, horizon, zone, n;
    -- no day before the horizon is one too many: then the step ends there
    stop := greatest(coalesce(stop, usage.local_day(horizon, zone)), usage.next_day(usage.local_day(first, zone)));
    return usage.next_event(usage.day_start(stop, zone), until);
end

-- sums_query --
-- What usage.measured_sql() makes of each event, added up where it is: $1 since, $2 until, $3 zone. Above the seal only today's
-- definition of a metric holds, and nothing below it is added here. random() is a fence, as OFFSET 0 is there, but one that
-- Citus hands on to the workers: a subquery with something volatile is not merged with what is around it, so each expression is
-- worked out once (that halves the time).
select usage.local_day(n.created_at, $3), n.collection_id, usage.key_text(n.resource_type),
       usage.key_text(n.job_type), usage.key_text(n.model_level),
       count(*), coalesce(sum(usage.in_bounds(n.value_number)), 0), coalesce(sum(usage.in_bounds(n.secondary_number)), 0),
       count(*) filter (where usage.is_rejected(n.value, usage.in_bounds(n.value_number))
                           or usage.is_rejected(n.secondary, usage.in_bounds(n.secondary_number)))
  from (select j.created_at, j.collection_id, j.resource_type, j.job_type, j.model_level, j.value, j.secondary,
               usage.parsed_number(j.value) as value_number, usage.parsed_number(j.secondary) as secondary_number,
               random() as fence
          from (select e.created_at, e.collection_id, e.resource_type,
                       e.detail ->> 'job_type' as job_type, e.detail ->> 'model_level' as model_level,
                       e.detail -> m.value_key as value, e.detail -> m.secondary_key as secondary,
                       random() as fence
                  from {source} e
                  left join usage.metric m on m.resource_type = e.resource_type collate "C"
                 where e.created_at >= $1 and e.created_at < $2) j) n
 group by 1, 2, 3, 4, 5

-- distributed_sums_body --
begin
    return query execute {sums} using since, until, (select s.time_zone from usage.state s);
end

-- distribute_functions --
-- What the workers call. Citus makes it known to them by itself where schema usage came after the extension and the nodes.
select create_distributed_function(f::regprocedure)
  from unnest(array['usage.local_day(timestamptz, text)', 'usage.key_text(text)', 'usage.parsed_number(jsonb)',
                    'usage.in_bounds(numeric)', 'usage.is_rejected(jsonb, numeric)']) f

-- add_raw --
insert into pg_temp.delta
select 'daily', d.day, d.collection_id, d.resource_type, d.job_type, d.model_level,
       d.event_count, d.total_value, d.secondary_value, d.rejected_count, null
  from usage.distributed_sums(%(from)s::timestamptz, %(to)s::timestamptz) d
