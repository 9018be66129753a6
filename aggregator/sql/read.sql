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

-- metrics --
select m.resource_type, m.label, m.unit, m.secondary_unit from usage.metric m
