-- Views for people and BI tools. They reach raw rows only through SECURITY DEFINER functions.

create view usage.pending as
select sign, created_at, collection_id, resource_type, detail
  from usage.pending_event();
comment on view usage.pending is
'Signed events that are not yet in the rollups: rollups + pending = raw events, in every snapshot. Raw rows: not for readers.';

create view usage.daily_live as
select l.day, l.collection_id, usage.title_of(l.collection_id) as collection_title, l.resource_type, l.job_type, l.model_level,
       l.event_count, l.total_value, l.secondary_value, l.rejected_count, m.unit, m.secondary_unit
  from (select s.day, s.collection_id, s.resource_type, s.job_type, s.model_level,
               sum(s.event_count)::bigint as event_count, sum(s.total_value) as total_value,
               sum(s.secondary_value) as secondary_value, sum(s.rejected_count)::bigint as rejected_count
          from (select d.day, d.collection_id, d.resource_type, d.job_type, d.model_level,
                       d.event_count, d.total_value, d.secondary_value, d.rejected_count
                  from usage.daily d
                 where d.day < (select usage.rolled_until())
                union all
                select p.day, p.collection_id, p.resource_type, p.job_type, p.model_level,
                       p.event_count, p.total_value, p.secondary_value, p.rejected_count
                  from usage.pending_sums() p) s
         group by s.day, s.collection_id, s.resource_type, s.job_type, s.model_level
        having sum(s.event_count) <> 0) l
  left join usage.metric m on m.resource_type = l.resource_type;
comment on view usage.daily_live is
'usage.daily and what is pending, with title and units: exact in every snapshot, whatever has been refreshed.';
comment on column usage.daily_live.day is 'Local day in the reporting zone; -infinity / infinity outside years 1-9999.';
comment on column usage.daily_live.total_value is 'Exact sum, in unit.';
comment on column usage.daily_live.secondary_value is 'Exact sum, in secondary_unit.';

create view usage.monthly_live as
select l.month, l.collection_id, usage.title_of(l.collection_id) as collection_title, l.resource_type, l.job_type, l.model_level,
       l.event_count, l.total_value, l.secondary_value, l.rejected_count, m.unit, m.secondary_unit
  from (select s.month, s.collection_id, s.resource_type, s.job_type, s.model_level,
               sum(s.event_count)::bigint as event_count, sum(s.total_value) as total_value,
               sum(s.secondary_value) as secondary_value, sum(s.rejected_count)::bigint as rejected_count
          from (select o.month, o.collection_id, o.resource_type, o.job_type, o.model_level,
                       o.event_count, o.total_value, o.secondary_value, o.rejected_count
                  from usage.monthly o
                 where o.month < (select usage.month_of(usage.rolled_until()))
                union all  -- of a month that is rolled up in part only, its days
                select usage.month_of(d.day), d.collection_id, d.resource_type, d.job_type, d.model_level,
                       d.event_count, d.total_value, d.secondary_value, d.rejected_count
                  from usage.daily d
                 where d.day >= (select usage.month_of(usage.rolled_until()))
                   and d.day < (select usage.rolled_until())
                union all
                select usage.month_of(p.day), p.collection_id, p.resource_type, p.job_type, p.model_level,
                       p.event_count, p.total_value, p.secondary_value, p.rejected_count
                  from usage.pending_sums() p) s
         group by s.month, s.collection_id, s.resource_type, s.job_type, s.model_level
        having sum(s.event_count) <> 0) l
  left join usage.metric m on m.resource_type = l.resource_type;
comment on view usage.monthly_live is
'usage.monthly and what is pending, with title and units: exact in every snapshot, whatever has been refreshed.';
comment on column usage.monthly_live.month is 'First day of the local month in the reporting zone.';
comment on column usage.monthly_live.total_value is 'Exact sum, in unit.';
comment on column usage.monthly_live.secondary_value is 'Exact sum, in secondary_unit.';

create view usage.rejected_event as
select e.created_at, e.collection_id, e.resource_type, e.detail,
       array_remove(array[
           case when usage.is_rejected(e.detail -> m.value_key, usage.in_bounds(usage.parsed_number(e.detail -> m.value_key)))
                then m.value_key end,
           case when usage.is_rejected(e.detail -> m.secondary_key, usage.in_bounds(usage.parsed_number(e.detail -> m.secondary_key)))
                then m.secondary_key end], null) as rejected_keys
  from usage.event() e
  join usage.metric m on m.resource_type = e.resource_type collate "C"
 where e.created_at is not null
   and (usage.is_rejected(e.detail -> m.value_key, usage.in_bounds(usage.parsed_number(e.detail -> m.value_key)))
        or usage.is_rejected(e.detail -> m.secondary_key, usage.in_bounds(usage.parsed_number(e.detail -> m.secondary_key))));
comment on view usage.rejected_event is
'Events whose value is no number within bounds: counted, adding 0. Reads the source: give a range of created_at. Raw rows: not for readers.';
comment on column usage.rejected_event.rejected_keys is 'The keys of detail that were rejected.';

create view usage.freshness as
select now() as as_of,
       s.source is not null as attached,
       s.time_zone,
       s.frontier,
       case when isfinite(s.frontier) then now() - s.frontier end as lag,
       usage.doubt() is null as trusted,
       usage.doubt() as reason,
       (select count(*) from usage.late_change l where l.created_at < s.frontier) as pending_changes,
       s.sealed_until,
       (select max(r.finished_at) from usage.refresh_run r where r.status = 'done') as last_refreshed,
       (select r.error from usage.refresh_run r where r.finished_at is not null order by r.id desc limit 1) as last_error,
       (select max(v.verified_at) from usage.verification v where v.differences = 0 or v.repaired) as last_verified
  from usage.state s;
comment on view usage.freshness is 'How fresh the rollups are and whether they may be believed; the answers are exact either way.';
comment on column usage.freshness.lag is 'Age of the frontier; null before the first refresh.';
comment on column usage.freshness.trusted is 'Whether readers use the rollups; if not, they read raw and are slow.';
comment on column usage.freshness.reason is 'Why they may not be used, with what to do.';
comment on column usage.freshness.pending_changes is 'Late changes waiting for the next refresh.';
comment on column usage.freshness.last_error is 'Error of the last finished refresh, null if it went well.';

-- Materialized views: what is costly to ask again and again. Empty until the first REFRESH. ------------------------

create materialized view usage.trailing as
with today as (
    select usage.local_day(now(), s.time_zone) as day from usage.state s
)
select k.as_of_day, k.collection_id, usage.title_of(k.collection_id) as collection_title,
       k.resource_type, k.job_type, k.model_level, m.unit, m.secondary_unit,
       k.event_count_1d, k.event_count_7d, k.event_count_30d, k.event_count_90d, k.event_count_365d, k.event_count_previous_30d,
       k.total_value_1d, k.total_value_7d, k.total_value_30d, k.total_value_90d, k.total_value_365d, k.total_value_previous_30d,
       k.secondary_value_1d, k.secondary_value_7d, k.secondary_value_30d, k.secondary_value_90d, k.secondary_value_365d, k.secondary_value_previous_30d
  from (select t.day as as_of_day, l.collection_id, l.resource_type, l.job_type, l.model_level,
               coalesce(sum(l.event_count) filter (where l.day >= t.day - 1), 0)::bigint as event_count_1d,
               coalesce(sum(l.event_count) filter (where l.day >= t.day - 7), 0)::bigint as event_count_7d,
               coalesce(sum(l.event_count) filter (where l.day >= t.day - 30), 0)::bigint as event_count_30d,
               coalesce(sum(l.event_count) filter (where l.day >= t.day - 90), 0)::bigint as event_count_90d,
               sum(l.event_count)::bigint as event_count_365d,
               coalesce(sum(l.event_count) filter (where l.day >= t.day - 60 and l.day < t.day - 30), 0)::bigint as event_count_previous_30d,
               coalesce(sum(l.total_value) filter (where l.day >= t.day - 1), 0) as total_value_1d,
               coalesce(sum(l.total_value) filter (where l.day >= t.day - 7), 0) as total_value_7d,
               coalesce(sum(l.total_value) filter (where l.day >= t.day - 30), 0) as total_value_30d,
               coalesce(sum(l.total_value) filter (where l.day >= t.day - 90), 0) as total_value_90d,
               sum(l.total_value) as total_value_365d,
               coalesce(sum(l.total_value) filter (where l.day >= t.day - 60 and l.day < t.day - 30), 0) as total_value_previous_30d,
               coalesce(sum(l.secondary_value) filter (where l.day >= t.day - 1), 0) as secondary_value_1d,
               coalesce(sum(l.secondary_value) filter (where l.day >= t.day - 7), 0) as secondary_value_7d,
               coalesce(sum(l.secondary_value) filter (where l.day >= t.day - 30), 0) as secondary_value_30d,
               coalesce(sum(l.secondary_value) filter (where l.day >= t.day - 90), 0) as secondary_value_90d,
               sum(l.secondary_value) as secondary_value_365d,
               coalesce(sum(l.secondary_value) filter (where l.day >= t.day - 60 and l.day < t.day - 30), 0) as secondary_value_previous_30d
          from today t
          join usage.daily_live l on l.day >= t.day - 365 and l.day < t.day
         group by t.day, l.collection_id, l.resource_type, l.job_type, l.model_level) k
  left join usage.metric m on m.resource_type = k.resource_type
  with no data;
create unique index trailing_key on usage.trailing (collection_id, resource_type, job_type, model_level) nulls not distinct;
comment on materialized view usage.trailing is
'Sums by key of the last 1, 7, 30, 90 and 365 whole local days before as_of_day, and of the 30 days before the last 30.';
comment on column usage.trailing.as_of_day is 'The local day of the refresh; it is not counted itself.';
comment on column usage.trailing.total_value_previous_30d is 'Days 60 to 31 before as_of_day, to compare the last 30 with.';

create materialized view usage.monthly_ranking as
select l.month, l.collection_id, usage.title_of(l.collection_id) as collection_title,
       l.resource_type, l.job_type, l.model_level, l.unit, l.event_count, l.total_value,
       l.total_value / nullif(sum(l.total_value) over of_type, 0) as share,
       rank() over (of_type order by l.total_value desc) as rank,
       l.total_value - case when lag(l.month) over of_key = (l.month - interval '1 month')::date
                            then lag(l.total_value) over of_key else 0 end as change
  from usage.monthly_live l
window of_type as (partition by l.month, l.resource_type),
       of_key as (partition by l.collection_id, l.resource_type, l.job_type, l.model_level order by l.month)
  with no data;
create unique index monthly_ranking_key
    on usage.monthly_ranking (month, collection_id, resource_type, job_type, model_level) nulls not distinct;
comment on materialized view usage.monthly_ranking is
'Each key''s sum in a month, its share and rank among those of its resource type, and the change on the month before.';
comment on column usage.monthly_ranking.share is 'Part of the month''s total_value of the same resource type, 0 to 1; null if that is 0.';
comment on column usage.monthly_ranking.rank is 'By total_value within month and resource type, 1 the largest.';
comment on column usage.monthly_ranking.change is 'total_value less that of the month before (0 if the key had none).';
