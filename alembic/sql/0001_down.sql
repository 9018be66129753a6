-- Everything of 0001, in the reverse order; the migrate command drops the schema itself.
drop materialized view usage.monthly_ranking;
drop materialized view usage.trailing;
drop view usage.freshness, usage.rejected_event, usage.monthly_live, usage.daily_live, usage.pending;
drop trigger metric_changed on usage.metric;
do $$
declare
    routine regprocedure;
begin
    -- measured() is bound to the functions it calls, so it goes first
    drop function usage.measured;
    for routine in select p.oid from pg_catalog.pg_proc p where p.pronamespace = 'usage'::regnamespace loop
        execute pg_catalog.format('drop function %s cascade', routine);
    end loop;
end $$;
drop type usage.window_parts;
drop table usage.restatement, usage.verification, usage.refresh_run, usage.metric, usage.daily_total, usage.monthly_collection,
    usage.daily_collection, usage.monthly, usage.daily, usage.truncate_marker, usage.late_change, usage.state;
drop sequence usage.seal_seq, usage.frontier_seq;
comment on schema usage is null;
