-- deploy/roles.sql of release 0001, for tests of upgrades. Frozen.
-- Least-privilege roles for schema usage. Run after every migrate, as the owner of the schema (or a superuser):
--
--     psql -v source=public.resource_usage_log -f deploy/roles.sql "$AGGREGATOR_DATABASE_URL"
--
-- usage_refresher runs refresh and verify; usage_reader reads answers, and no raw rows. Grant them to login roles:
--
--     create role dashboard login in role usage_reader;
--
-- migrate, attach and detach need the owner of the source table: they add triggers to it.

do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'usage_reader') then
        create role usage_reader nologin;
    end if;
    if not exists (select from pg_catalog.pg_roles where rolname = 'usage_refresher') then
        create role usage_refresher nologin;
    end if;
end $$;

grant usage on schema usage to usage_reader, usage_refresher;

-- Reading: the rollups, the live views, the materialized views, and the read functions. Not event, pending,
-- rejected_event, late_change: they hold raw rows. The functions below the read functions are what the views call.
grant select on
    usage.daily, usage.daily_collection, usage.daily_total, usage.monthly, usage.monthly_collection, usage.metric,
    usage.state, usage.daily_live, usage.monthly_live, usage.freshness, usage.trailing, usage.monthly_ranking, usage.alembic_version
    to usage_reader;
grant execute on function
    usage.by_collection(timestamptz, timestamptz, uuid),
    usage.ai_drilldown(timestamptz, timestamptz, uuid),
    usage.daily_series(timestamptz, timestamptz, uuid),
    usage.overview(timestamptz, timestamptz, uuid),
    usage.overview(numeric, uuid),
    usage.receipt(timestamptz, timestamptz, uuid),
    usage.overview_rows(timestamptz, timestamptz, uuid),
    usage.window_start(numeric, text, timestamptz),
    usage.instant_text(timestamptz),
    usage.month_of(date), usage.rolled_until(), usage.pending_sums(), usage.title_of(uuid), usage.doubt()
    to usage_reader;

-- Refreshing and verifying.
grant usage_reader to usage_refresher;
grant select, insert, update, delete on
    usage.daily, usage.daily_collection, usage.daily_total, usage.monthly, usage.monthly_collection,
    usage.late_change, usage.truncate_marker, usage.refresh_run, usage.verification, usage.restatement
    to usage_refresher;
grant select, update on usage.state to usage_refresher;
grant select, update on sequence usage.frontier_seq to usage_refresher;
grant select on sequence usage.seal_seq to usage_refresher;
grant select on usage.pending, usage.rejected_event to usage_refresher;
grant execute on all functions in schema usage to usage_refresher;
grant select on :source to usage_refresher;
