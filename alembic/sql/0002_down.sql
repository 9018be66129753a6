-- Back to 0001. The capture function of a source that is attached must not name a column that goes.
do $$ begin
    execute replace(replace(pg_get_functiondef('usage.capture()'::regprocedure), 'detail, leaf)', 'detail)'), 'detail, tg_relid)', 'detail)');
end $$;
create or replace function usage.fingerprint_doubt() returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    s        usage.state;
    now_is   jsonb;
    relation record;
    filled   boolean;
begin
    select * into strict s from usage.state;
    if s.source is null then
        return null;
    end if;
    if to_regclass(s.source) is null then
        return format('the source table %s is gone: restore it, or run aggregator detach', s.source);
    end if;
    if to_regclass(s.source)::oid <> s.source_oid then
        return format('another table bears the name %s: run aggregator attach, then verify --repair', s.source);
    end if;
    now_is := usage.fingerprint();
    if now_is = s.fingerprint then
        return null;
    end if;
    for relation in
        select coalesce(o.key, n.key)::oid as oid, o.value as old, n.value as new
          from jsonb_each_text(s.fingerprint) o full join jsonb_each_text(now_is) n on n.key = o.key
         where o.value is distinct from n.value
         order by 1
    loop
        if relation.new is null then
            return format('partition %s of the source is gone: run aggregator verify --repair to follow, or seal to keep its history',
                          relation.oid::regclass);
        elsif relation.old is not null then
            return format('capture on %s was changed (triggers or file): run aggregator attach, then verify --repair',
                          relation.oid::regclass);
        end if;
        -- A new partition that was created empty is filled through its triggers: only one that brought rows along
        -- from below the frontier is in doubt.
        if (select relkind from pg_class c where c.oid = relation.oid) <> 'p' then
            execute format('select exists (select from %s where created_at < $1)', relation.oid::regclass)
               into filled using s.frontier;
            if filled then
                return format('partition %s of the source is new and holds events below the frontier: run aggregator refresh',
                              relation.oid::regclass);
            elsif usage.is_rewritten(relation.oid, relation.new) then
                return format('partition %s of the source is new and was truncated or rewritten: run aggregator refresh',
                              relation.oid::regclass);
            end if;
        end if;
        if not usage.is_captured(relation.new, s.capture_mode) then
            return format('partition %s of the source is not captured: run aggregator attach, then verify --repair',
                          relation.oid::regclass);
        end if;
    end loop;
    return null;
end $$;
alter table usage.late_change drop column leaf;
drop view usage.freshness;
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
drop function usage.problems(interval, interval, bigint, numeric, interval);
drop function usage.tail_events(bigint);
drop table usage.health_limit;
drop trigger metric_redefined on usage.metric;
drop trigger metric_changed on usage.metric;
create or replace function usage.metric_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update usage.state
       set trusted = false,
           -- the moment: a repair that is under way must see that this happened after it began
           distrust_reason = format('a metric was changed at %s: run aggregator verify --repair', clock_timestamp())
     where source is not null;
    return null;
end $$;
comment on function usage.metric_changed() is 'Trigger on usage.metric: turn trust off until the rollups are repaired.';
create trigger metric_changed after insert or update or delete or truncate on usage.metric
    for each statement execute function usage.metric_changed();
drop table usage.metric_history;
drop function usage.analyze_changed();
drop function usage.refresh_view(text);
drop table usage.view_refresh;
drop function usage.nightly_due(timestamptz, time, text);
drop table usage.job;
update usage.refresh_run set status = 'failed' where status = 'stopped';
alter table usage.refresh_run drop constraint refresh_run_status;
alter table usage.refresh_run add constraint refresh_run_status check (status in ('running', 'done', 'partial', 'failed'));
comment on column usage.refresh_run.status is
'running (or killed, if its process is gone); done; partial: late changes only, a writer stayed open; failed.';
alter table usage.state drop column repair_run;
alter table usage.state drop column repair_day;
alter table usage.state drop column version;
