-- Run-time SQL of the read function. As plain numbers and text, so that no DateStyle, TimeZone or loader
-- of the caller's connection changes anything, and days that Python has no date for do not fail.

-- overview --
-- Run in the caller's session, whose search_path may hide anything: every name and operator is qualified.
select r.section,
       case when pg_catalog.isfinite(r.day) then pg_catalog.to_char(r.day::pg_catalog.timestamp, 'YYYY-MM-DD')
            else r.day::pg_catalog.text end,
       usage.instant_text(r.starts_at),
       r.collection_id::pg_catalog.text, r.collection_title, r.resource_type, r.job_type, r.model_level, r.event_count,
       r.total_value::pg_catalog.text, r.secondary_value::pg_catalog.text,
       (extract(epoch from r.as_of) operator(pg_catalog.*) 1000000)::pg_catalog.int8,
       case when pg_catalog.isfinite(r.frontier)
            then (extract(epoch from r.frontier) operator(pg_catalog.*) 1000000)::pg_catalog.int8 end,
       r.exact, r.reasons, r.rollup_rows, r.raw_rows, r.pending_changes
  from usage.overview_rows(
           coalesce(%(since)s::pg_catalog.timestamptz,
                    usage.window_start(%(days)s::pg_catalog.numeric, (select s.time_zone from usage.state s),
                                       coalesce(%(until)s::pg_catalog.timestamptz, pg_catalog.now()))),
           %(until)s::pg_catalog.timestamptz, %(collection)s::pg_catalog.uuid) r
 order by r.section, r.ordinal

-- daily --
-- As overview, by days of a time zone.
select case when pg_catalog.isfinite(r.day) then pg_catalog.to_char(r.day::pg_catalog.timestamp, 'YYYY-MM-DD')
            else r.day::pg_catalog.text end,
       usage.instant_text(r.starts_at), r.resource_type, r.event_count, r.total_value::pg_catalog.text
  from usage.daily_series(
           coalesce(%(since)s::pg_catalog.timestamptz,
                    usage.window_start(%(days)s::pg_catalog.numeric, (select s.time_zone from usage.state s),
                                       coalesce(%(until)s::pg_catalog.timestamptz, pg_catalog.now()))),
           %(until)s::pg_catalog.timestamptz, %(collection)s::pg_catalog.uuid, %(zone)s::pg_catalog.text)
       with ordinality r (day, starts_at, resource_type, event_count, total_value, ordinal)
 order by r.ordinal

-- totals --
-- As overview: a row at least, for what is said of the read. True: there is a group in it.
select (extract(epoch from p.as_of) operator(pg_catalog.*) 1000000)::pg_catalog.int8,
       case when pg_catalog.isfinite(p.frontier)
            then (extract(epoch from p.frontier) operator(pg_catalog.*) 1000000)::pg_catalog.int8 end,
       p.exact, p.reasons,
       t.event_count is not null,
       case when pg_catalog.isfinite(t.bucket) then pg_catalog.to_char(t.bucket::pg_catalog.timestamp, 'YYYY-MM-DD')
            else t.bucket::pg_catalog.text end,
       usage.instant_text(t.starts_at), t.collection_id::pg_catalog.text, t.collection_title,
       t.resource_type, t.job_type, t.model_level, t.event_count, t.total_value, t.secondary_value, t.unit, t.secondary_unit,
       t.event_count_before, t.total_value_before, t.secondary_value_before
  from (select coalesce(%(since)s::pg_catalog.timestamptz,
                        usage.window_start(%(days)s::pg_catalog.numeric, (select s.time_zone from usage.state s),
                                           coalesce(%(until)s::pg_catalog.timestamptz, pg_catalog.now()))) as since) w
 cross join usage.window_parts(w.since, %(until)s::pg_catalog.timestamptz) p
  left join usage.totals(w.since, %(until)s::pg_catalog.timestamptz, %(by)s::pg_catalog.text[], %(grain)s::pg_catalog.text,
                         %(fill)s::pg_catalog.bool, %(collection)s::pg_catalog.uuid)
       with ordinality t (bucket, starts_at, collection_id, collection_title, resource_type, job_type, model_level,
                          event_count, total_value, secondary_value, unit, secondary_unit,
                          event_count_before, total_value_before, secondary_value_before, ordinal) on true
 order by t.ordinal

-- metrics --
select m.resource_type, m.label, m.unit, m.secondary_unit from usage.metric m
