-- Run-time SQL of export, under the settings of db.transaction.

-- receipt --
-- The window, and how far the sums of it can be believed: usage.window_parts() reads no events.
select (extract(epoch from w.since) * 1000000)::int8, (extract(epoch from p.as_of) * 1000000)::int8,
       case when isfinite(p.frontier) then (extract(epoch from p.frontier) * 1000000)::int8 end,
       p.exact, p.reasons, p.zone
  from (select coalesce(%(since)s::timestamptz,
                        usage.window_start(%(days)s::numeric, (select s.time_zone from usage.state s),
                                           coalesce(%(until)s::timestamptz, now()))) as since) w
 cross join usage.window_parts(w.since, %(until)s::timestamptz) p

-- fits --
-- Whether every bucket is a calendar day, and every sum has at most 29 digits before the point and 9 after it.
select coalesce(bool_and(isfinite(r.bucket)), true),
       coalesce(bool_and(abs(r.total_value) < 1e29 and scale(r.total_value) <= 9), true),
       coalesce(bool_and(abs(r.secondary_value) < 1e29 and scale(r.secondary_value) <= 9), true)
  from usage.export_rows(%(since)s::timestamptz, %(until)s::timestamptz, %(grain)s::text, %(collection)s::uuid) r

-- rows --
copy (select r.bucket, r.collection_id, r.collection_title, r.resource_type, r.job_type, r.model_level,
             r.event_count, r.total_value, r.secondary_value, r.unit, r.secondary_unit
        from usage.export_rows(%(since)s::timestamptz, %(until)s::timestamptz, %(grain)s::text, %(collection)s::uuid)
             with ordinality r (bucket, collection_id, collection_title, resource_type, job_type, model_level,
                                event_count, total_value, secondary_value, unit, secondary_unit, ordinal)
       order by r.ordinal)
  to stdout
