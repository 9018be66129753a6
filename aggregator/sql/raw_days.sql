-- Run-time SQL of the days of a step: their raw events, added up. Instants and days travel as text: infinity and years BC have no datetime.

-- next_day_of_events --
-- The first event in a range, as its local day, and where that day ends within the range.
select usage.local_day(e.created_at, %(zone)s)::text,
       least(usage.day_start(usage.next_day(usage.local_day(e.created_at, %(zone)s)), %(zone)s), %(to)s::timestamptz)::text
  from usage.event() e
 where e.created_at >= %(from)s::timestamptz and e.created_at < %(to)s::timestamptz
 order by e.created_at
 limit 1

-- raw_day --
-- One day at a time: a small hash table stays in the processor's cache, and the rollup's rows come in order of days.
select 'daily' as rollup, {day}::date as bucket, e.collection_id, e.resource_type, e.job_type, e.model_level,
       count(*) as event_count, coalesce(sum(e.value), 0) as total_value, coalesce(sum(e.secondary), 0) as secondary_value,
       count(*) filter (where e.rejected) as rejected_count, null::text as reason, {hour} as hour, false as malformed
  from {events} e
 group by e.collection_id, e.resource_type, e.job_type, e.model_level{by_hour}

-- presumed_day --
-- The same of events that are presumed to be well formed. Where malformed is true some are not, and no sum of that day may be used.
select 'daily' as rollup, {day}::date as bucket, e.collection_id, e.resource_type, e.job_type, e.model_level,
       count(*) as event_count, coalesce(sum(e.value), 0) as total_value, coalesce(sum(e.secondary), 0) as secondary_value,
       0::bigint as rejected_count, null::text as reason, {hour} as hour,
       coalesce(sum(e.value) = 'NaN' or scale(sum(e.value)) > 40 or sum(e.secondary) = 'NaN' or scale(sum(e.secondary)) > 40
                or octet_length(e.resource_type) > 128 or octet_length(e.job_type) > 128 or octet_length(e.model_level) > 128,
                false) as malformed
  from {events} e
 group by e.collection_id, e.resource_type, e.job_type, e.model_level{by_hour}

-- any_rejected --
select exists (select from usage.daily_total t where t.day = %(day)s::date and t.rejected_count <> 0)

-- malformed_days --
select array_agg(distinct x.bucket::text) from pg_temp.{table} x where x.malformed

-- take_back --
delete from pg_temp.{table} x where x.bucket = any(%(days)s::date[])
