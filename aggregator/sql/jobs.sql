-- Run-time SQL of jobs: leases, and what is due. Instants are the database's, so hosts' clocks do not matter.

-- shorten --
-- Leases that end later than one taken now: the clock stepped back. Who is at work extends his; who is gone is given up in time.
update usage.job
   set lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
 where lease_until > clock_timestamp() + make_interval(secs => %(lease)s)

-- claim --
-- Take the lease of a job, unless another holder has it.
update usage.job j
   set holder = %(holder)s, claimed_at = clock_timestamp(), lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
 where j.name = %(name)s
   and (j.lease_until is null or j.lease_until < clock_timestamp())
returning j.holder

-- claim_refresh --
-- Take the lease of the periodic refresh if one is due: nearly an interval after the last began, or after a failure's pause.
update usage.job j
   set holder = %(holder)s, claimed_at = clock_timestamp(), lease_until = clock_timestamp() + make_interval(secs => %(lease)s),
       started_at = clock_timestamp()
 where j.name = 'refresh'
   and (j.lease_until is null or j.lease_until < clock_timestamp())
   and case when j.failures > 0 and j.retry_at is not null
            then j.retry_at <= clock_timestamp()
                 or j.retry_at > clock_timestamp() + make_interval(secs => %(longest)s)  -- the clock stepped back
            else coalesce(j.started_at <= clock_timestamp() - make_interval(secs => 0.9 * %(every)s), true)
                 or j.started_at > clock_timestamp() end  -- the clock stepped back
returning null

-- claim_nightly --
-- Take the lease of the nightly run if the last due instant has had none that went well.
update usage.job j
   set holder = %(holder)s, claimed_at = clock_timestamp(), lease_until = clock_timestamp() + make_interval(secs => %(lease)s),
       started_at = clock_timestamp()
  from usage.state s
 where j.name = 'nightly'
   and s.source is not null
   and (j.lease_until is null or j.lease_until < clock_timestamp())
   and (j.failures = 0 or j.retry_at is null or j.retry_at <= clock_timestamp()
        or j.retry_at > clock_timestamp() + make_interval(secs => %(longest)s))  -- the clock stepped back
   and (j.done_for is null or j.done_for < usage.nightly_due(clock_timestamp(), %(at)s::time, s.time_zone)
        or j.done_for > clock_timestamp())  -- the clock stepped back
   -- what was attached after the due instant has had nothing to do then
   and (j.done_for is not null or s.attached_at is null
        or s.attached_at < usage.nightly_due(clock_timestamp(), %(at)s::time, s.time_zone))
returning usage.nightly_due(clock_timestamp(), %(at)s::time, s.time_zone)

-- holder --
select j.holder, j.claimed_at::text from usage.job j
 where j.name = %(name)s and j.holder is not null and j.lease_until >= clock_timestamp()

-- extend --
update usage.job set lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
 where name = %(name)s and holder = %(holder)s

-- release --
update usage.job set holder = null, lease_until = null where name = %(name)s and holder = %(holder)s

-- done --
update usage.job
   set finished_at = clock_timestamp(), failures = 0, retry_at = null, last_error = null,
       done_for = coalesce(%(done_for)s::timestamptz, done_for)
 where name = %(name)s

-- refreshed --
-- The nightly run or somebody by hand has refreshed.
update usage.job
   set started_at = clock_timestamp(), finished_at = clock_timestamp(), failures = 0, retry_at = null, last_error = null
 where name = 'refresh'

-- failed --
-- Pauses double, from some seconds to a limit, so that several schedulers share them.
update usage.job
   set failures = failures + 1, last_error = %(error)s,
       retry_at = clock_timestamp() + make_interval(secs => least(%(first)s * power(2, least(failures, 20)), %(longest)s))
 where name = %(name)s
returning extract(epoch from retry_at - clock_timestamp())::float8
