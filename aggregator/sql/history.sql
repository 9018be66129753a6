-- Run-time SQL of the histories, newest first.

-- refreshes --
select r.id, date_trunc('second', r.started_at)::text as started, date_trunc('second', r.finished_at)::text as finished, r.status, r.steps, r.events, r.late_changes,
       date_trunc('second', r.frontier_to)::text as frontier, r.waited_for, r.error
  from usage.refresh_run r
 order by r.id desc
 limit %(limit)s

-- verifications --
select date_trunc('second', v.verified_at)::text as verified, v.day_from::text as day_from, v.day_to::text as day_to, v.differences, v.repaired
  from usage.verification v
 order by v.id desc
 limit %(limit)s

-- restatements --
select date_trunc('second', r.restated_at)::text as restated, r.reason, r.rollup, r.bucket::text as bucket, r.collection_id::text as collection, r.resource_type,
       r.job_type, r.model_level, r.event_count as events, r.total_value as total, r.secondary_value as secondary,
       r.rejected_count as rejected, r.run_id as run
  from usage.restatement r
 order by r.id desc
 limit %(limit)s
