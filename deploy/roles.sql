-- Least-privilege roles for schema usage. Run it before the first migrate, and again after every migrate (an upgrade adds
-- objects), as a superuser or as the owner of the schema and of the source:
--
--     psql -v source=public.resource_usage_log -f deploy/roles.sql "$AGGREGATOR_DATABASE_URL"
--
-- usage_owner     owns schema usage: migrate, attach, detach, metric, purge, and all of the following. It needs to own the source too, because
--                 attach adds triggers to it: grant <owner of the source> to usage_owner.
-- usage_refresher runs the scheduler: refresh, materialized views, verify, rebuild, seal. It reads raw events and changes
--                 none. A grant on the source is enough, new partitions need none.
-- usage_reader    reads answers, and no raw rows.
--
-- aggregator serve needs no more than usage_reader, and to see who may administer what:
--
--     grant select (source_id, edge_type) on public.edges to usage_reader;
--
-- They do not log in. Grant them to roles that do, and let the owner's act as usage_owner, so that all is owned by it:
--
--     create role migrator login in role usage_owner;   alter role migrator set role = usage_owner;
--     create role scheduler login in role usage_refresher;
--     create role dashboard login in role usage_reader;
--
-- A scheduler that purges (AGGREGATOR_KEEP) deletes raw events, which is for you to allow:
--
--     grant delete on public.resource_usage_log to usage_refresher;
--
-- and drops whole partitions only as their owner; otherwise it deletes their rows.

-- A source that is attached with --capture lookback need not be owned by anybody here; SELECT is enough. A foreign table
-- needs user mappings for the owner of schema usage (the read functions run as it) and for the refresher's login role.

-- Whatever the database's own search_path would find first.
set search_path = pg_catalog, pg_temp;

do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'usage_owner') then
        create role usage_owner nologin;
    end if;
    if not exists (select from pg_catalog.pg_roles where rolname = 'usage_reader') then
        create role usage_reader nologin;
    end if;
    if not exists (select from pg_catalog.pg_roles where rolname = 'usage_refresher') then
        create role usage_refresher nologin;
    end if;
    execute pg_catalog.format('grant create on database %I to usage_owner', pg_catalog.current_database());
end $$;

grant usage_reader to usage_refresher;
grant select on :source to usage_owner, usage_refresher;

do $$
begin
    if pg_catalog.to_regclass('usage.alembic_version') is null then
        raise notice 'schema usage is not there yet: run aggregator migrate, then this file again';
        return;
    end if;

    grant usage on schema usage to usage_reader, usage_refresher;

    -- Reading: the rollups, the live views, the materialized views, and the read functions. Not event, pending,
    -- rejected_event, late_change: they hold raw rows. The functions below the read functions are what the views call.
    grant select on
        usage.daily, usage.daily_collection, usage.daily_total, usage.monthly, usage.monthly_collection,
        usage.quarterly_collection, usage.metric,
        usage.hourly, usage.hourly_collection, usage.hourly_total,
        usage.metric_history, usage.metric_definition, usage.state, usage.daily_live, usage.monthly_live, usage.freshness, usage.trailing,
        usage.monthly_ranking, usage.view_refresh, usage.health_limit, usage.alembic_version
        to usage_reader;
    grant execute on function
        usage.by_collection(timestamptz, timestamptz, uuid),
        usage.ai_drilldown(timestamptz, timestamptz, uuid),
        usage.daily_series(timestamptz, timestamptz, uuid),
        usage.daily_series(timestamptz, timestamptz, uuid, text),
        usage.overview(timestamptz, timestamptz, uuid),
        usage.overview(numeric, uuid),
        usage.receipt(timestamptz, timestamptz, uuid),
        usage.overview_rows(timestamptz, timestamptz, uuid),
        usage.totals(timestamptz, timestamptz, text[], text, boolean, uuid),
        usage.export_rows(timestamptz, timestamptz, text, uuid),
        usage.window_parts(timestamptz, timestamptz),
        usage.window_start(numeric, text, timestamptz),
        usage.instant_text(timestamptz),
        usage.problems(interval, interval, bigint, numeric, interval),
        usage.month_of(date), usage.next_month(date), usage.local_day(timestamptz, text), usage.rolled_until(), usage.pending_sums(), usage.title_of(uuid), usage.doubt()
        to usage_reader;

    -- Refreshing, verifying, scheduling.
    grant select, insert, update, delete on
        usage.daily_fact, usage.daily_collection_fact, usage.daily_total, usage.monthly_fact, usage.monthly_collection_fact,
        usage.quarterly_collection_fact,
        usage.hourly_fact, usage.hourly_collection_fact, usage.hourly_total, usage.six_hours, usage.mark_fact, usage.mark_total, usage.rolled_day,
        usage.late_change, usage.truncate_marker, usage.refresh_run, usage.verification, usage.restatement
        to usage_refresher;
    grant select, insert on usage.key to usage_refresher;
    -- Not what usage.state says is attached: a trigger refuses that.
    grant select, update on usage.state, usage.job, usage.view_refresh, usage.health_limit to usage_refresher;
    grant select, update on sequence usage.frontier_seq, usage.seal_seq, usage.doubt_seq to usage_refresher;
    grant select on usage.pending, usage.rejected_event to usage_refresher;
    grant execute on all functions in schema usage to usage_refresher;
end $$;

reset search_path;
