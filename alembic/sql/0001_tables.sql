-- Tables, sequences and types of schema usage. Ranges are [start, end) throughout.
-- The schema itself is made by the migrate command, because Alembic's version table lives in it.

comment on schema usage is
'Exact usage rollups (aggregator). Everything in here can be rebuilt from the source table, save sealed history.';

-- One row: what the rollups cover and whether they may be believed ------------------------------------------

create table usage.state (
    id               boolean     not null default true,
    frontier         timestamptz not null default '-infinity',
    sealed_until     timestamptz not null default '-infinity',
    trusted          boolean     not null default true,
    distrust_reason  text,
    time_zone        text        not null default 'UTC',
    source           text,
    title_source     text,
    source_oid       oid,
    fingerprint      jsonb,
    capture_mode     text,
    zone_valid_from  timestamptz not null default '-infinity',
    attached_at      timestamptz,
    constraint state_pkey primary key (id),
    constraint state_one_row check (id),
    constraint state_reason check (trusted = (distrust_reason is null)),
    constraint state_capture_mode check (capture_mode in ('always', 'origin')),
    constraint state_sealed_below_frontier check (sealed_until <= frontier)
);
comment on table usage.state is 'One row: the frontier, the seal, trust, the reporting zone and what is known of the source.';
comment on column usage.state.frontier is 'Events below this instant are in the rollups (late changes aside); from it on they are not.';
comment on column usage.state.sealed_until is 'Below this instant, a day''s first, the rollups are the record: raw rows may be gone.';
comment on column usage.state.trusted is 'While false, readers read raw above the seal: slow, and still right.';
comment on column usage.state.distrust_reason is 'Why trust is off, with what to do; null while it is on.';
comment on column usage.state.time_zone is 'Reporting time zone, an IANA name; days and months are local to it.';
comment on column usage.state.source is 'Qualified, quoted name of the source table; null while not attached.';
comment on column usage.state.title_source is 'Qualified, quoted name of the table of collection titles, or null.';
comment on column usage.state.source_oid is 'The source''s oid when it was attached or last verified.';
comment on column usage.state.fingerprint is 'Partitions and capture triggers as last verified: usage.fingerprint().';
comment on column usage.state.capture_mode is 'always: triggers are ENABLE ALWAYS; origin: late_change is itself subscribed to.';
comment on column usage.state.zone_valid_from is 'Before this instant the zone''s local date ran backwards: no day intervals, no trust.';
comment on column usage.state.attached_at is 'When capture began.';
insert into usage.state default values;

-- Capture ---------------------------------------------------------------------------------------------------

-- Microseconds since the epoch. MINVALUE lies in 4710 BC: to_timestamp() of it must not fail in a trigger's WHEN.
create sequence usage.frontier_seq as bigint
    minvalue -210800000000000000 start -210800000000000000 cache 1;
comment on sequence usage.frontier_seq is
'The frontier that writers compare with, in microseconds since the epoch: a sequence, because it must not depend on a snapshot.';
create sequence usage.seal_seq as bigint
    minvalue -210800000000000000 start -210800000000000000 cache 1;
comment on sequence usage.seal_seq is
'The seal that writers compare with, in microseconds since the epoch: deletes below it are a purge and log nothing. Never set: nothing is sealed.';
do $$ begin
    perform pg_catalog.setval('usage.frontier_seq', -210800000000000000);
end $$;

-- No check on sign: a trigger's insert would parse it anew for each row, a fifth of what a late COPY costs.
create table usage.late_change (
    sign           smallint    not null,
    created_at     timestamptz not null,
    collection_id  uuid,
    resource_type  text,
    detail         jsonb
);
alter table usage.late_change replica identity full;
create index late_change_created_at on usage.late_change (created_at);
comment on table usage.late_change is
'Signed copies of events changed below the frontier, until a fold adds them to the rollups. Written by triggers on the source.';
comment on column usage.late_change.sign is '+1: an event that came to be; -1: one that ceased to be.';
comment on column usage.late_change.created_at is 'The event''s instant.';
comment on column usage.late_change.collection_id is 'The event''s collection, or null.';
comment on column usage.late_change.resource_type is 'The event''s resource type, or null, unabridged.';
comment on column usage.late_change.detail is 'The event''s detail, or null.';

create table usage.truncate_marker (
    id            bigint generated always as identity,
    happened_at   timestamptz not null default clock_timestamp(),
    truncated     text        not null,
    constraint truncate_marker_pkey primary key (id)
);
comment on table usage.truncate_marker is
'A TRUNCATE of the source, or of a partition. While one is here readers read raw above the seal; the next refresh starts anew.';
comment on column usage.truncate_marker.truncated is 'The truncated table.';

-- Rollups ---------------------------------------------------------------------------------------------------

-- Text is compared bytewise: that is the contract's order, and by far the fastest to index. The unique index leads
-- with the collection, so it also serves the reads of one collection; the small index on the bucket serves the rest.
-- A fill factor below 100 keeps the running day's updates on their page (HOT), so rows stay in order of days.
create table usage.daily (
    day              date    not null,
    collection_id    uuid,
    resource_type    text    collate "C",
    job_type         text    collate "C",
    model_level      text    collate "C",
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint daily_key unique nulls not distinct (collection_id, day, resource_type, job_type, model_level)
) with (fillfactor = 90);
alter table usage.daily replica identity full;
create index daily_day on usage.daily (day);

create table usage.monthly (
    month            date    not null,
    collection_id    uuid,
    resource_type    text    collate "C",
    job_type         text    collate "C",
    model_level      text    collate "C",
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint monthly_key unique nulls not distinct (collection_id, month, resource_type, job_type, model_level)
) with (fillfactor = 80);
alter table usage.monthly replica identity full;
create index monthly_month on usage.monthly (month);

-- By collection and resource type only: a third of the rows, for the answers that need no more.
create table usage.daily_collection (
    day              date    not null,
    collection_id    uuid,
    resource_type    text    collate "C",
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint daily_collection_key unique nulls not distinct (collection_id, day, resource_type)
) with (fillfactor = 85);
alter table usage.daily_collection replica identity full;
create index daily_collection_day on usage.daily_collection (day);

create table usage.monthly_collection (
    month            date    not null,
    collection_id    uuid,
    resource_type    text    collate "C",
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint monthly_collection_key unique nulls not distinct (collection_id, month, resource_type)
) with (fillfactor = 80);
alter table usage.monthly_collection replica identity full;
create index monthly_collection_month on usage.monthly_collection (month);

create table usage.daily_total (
    day              date    not null,
    resource_type    text    collate "C",
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint daily_total_key unique nulls not distinct (day, resource_type)
) with (fillfactor = 80);
alter table usage.daily_total replica identity full;

comment on table usage.daily is
'Sums by local day and key, as of usage.freshness; exact now: usage.daily_live.';
comment on table usage.monthly is
'Sums by local month and key, as of usage.freshness; exact now: usage.monthly_live.';
comment on table usage.daily_collection is
'Sums by local day, collection and resource type, as of usage.freshness; exact now: usage.daily_live.';
comment on table usage.monthly_collection is
'Sums by local month, collection and resource type, as of usage.freshness; exact now: usage.monthly_live.';
comment on table usage.daily_total is
'Sums by local day and resource type, as of usage.freshness; exact now: usage.daily_series().';
comment on column usage.daily.day is 'Local day in the reporting zone; -infinity / infinity outside years 1-9999.';
comment on column usage.monthly.month is 'First day of the local month in the reporting zone; -infinity / infinity outside years 1-9999.';
comment on column usage.daily_collection.day is 'Local day in the reporting zone; -infinity / infinity outside years 1-9999.';
comment on column usage.monthly_collection.month is 'First day of the local month in the reporting zone; -infinity / infinity outside years 1-9999.';
comment on column usage.daily_total.day is 'Local day in the reporting zone; -infinity / infinity outside years 1-9999.';
do $$
declare
    rollup text;
begin
    foreach rollup in array array['daily', 'monthly', 'daily_collection', 'monthly_collection', 'daily_total'] loop
        if rollup <> 'daily_total' then
            execute format('comment on column usage.%I.collection_id is %L', rollup, 'Collection, or null.');
        end if;
        if rollup in ('daily', 'monthly') then
            execute format('comment on column usage.%I.job_type is %L', rollup, 'detail->>job_type, or null; long text is abridged.');
            execute format('comment on column usage.%I.model_level is %L', rollup, 'detail->>model_level, or null; long text is abridged.');
        end if;
        execute format('comment on column usage.%I.resource_type is %L', rollup, 'Resource type, or null; long text is abridged.');
        execute format('comment on column usage.%I.event_count is %L', rollup, 'Number of events.');
        execute format('comment on column usage.%I.total_value is %L', rollup, 'Exact sum of the type''s value, in usage.metric.unit.');
        execute format('comment on column usage.%I.secondary_value is %L', rollup, 'Exact sum of the type''s secondary value, in usage.metric.secondary_unit.');
        execute format('comment on column usage.%I.rejected_count is %L', rollup, 'Events with a value that is no number: counted, adding 0.');
    end loop;
end $$;

-- What each resource type adds up -----------------------------------------------------------------------------

create table usage.metric (
    resource_type   text collate "C" not null,
    value_key       text,
    secondary_key   text,
    unit            text,
    secondary_unit  text,
    label           text,
    constraint metric_pkey primary key (resource_type)
);
comment on table usage.metric is 'What each resource type adds up. Change it with aggregator metric: a change means a rebuild.';
comment on column usage.metric.resource_type is 'The resource type; types not listed here are counted, with value 0.';
comment on column usage.metric.value_key is 'Key in detail whose numbers add up to total_value; null: 0.';
comment on column usage.metric.secondary_key is 'Key in detail whose numbers add up to secondary_value; null: 0.';
comment on column usage.metric.unit is 'Unit of total_value.';
comment on column usage.metric.secondary_unit is 'Unit of secondary_value.';
comment on column usage.metric.label is 'What people call it.';
insert into usage.metric (resource_type, value_key, secondary_key, unit, secondary_unit, label) values
    ('ai',        'tokens_in',           'tokens_out', 'tokens',     'tokens', 'AI'),
    ('whisper',   'duration_seconds',    null,         'seconds',    null,     'Transcription'),
    ('tts',       'characters',          null,         'characters', null,     'Speech'),
    ('cas',       'size_bytes',          null,         'bytes',      null,     'Storage'),
    ('bandwidth', 'size_bytes',          null,         'bytes',      null,     'Bandwidth'),
    ('livekit',   'participant_minutes', null,         'minutes',    null,     'Meetings');

-- History of what we did ------------------------------------------------------------------------------------

create table usage.refresh_run (
    id             bigint generated always as identity,
    started_at     timestamptz not null default clock_timestamp(),
    finished_at    timestamptz,
    status         text        not null default 'running',
    frontier_from  timestamptz,
    frontier_to    timestamptz,
    steps          integer     not null default 0,
    events         bigint      not null default 0,
    late_changes   bigint      not null default 0,
    waited_for     text,
    error          text,
    constraint refresh_run_pkey primary key (id),
    constraint refresh_run_status check (status in ('running', 'done', 'partial', 'failed'))
);
comment on table usage.refresh_run is 'One row for each refresh, updated in each step''s own transaction.';
comment on column usage.refresh_run.status is
'running (or killed, if its process is gone); done; partial: late changes only, a writer stayed open; failed.';
comment on column usage.refresh_run.frontier_from is 'The frontier it found.';
comment on column usage.refresh_run.frontier_to is 'The frontier it has reached.';
comment on column usage.refresh_run.steps is 'Committed steps.';
comment on column usage.refresh_run.events is 'Raw events folded.';
comment on column usage.refresh_run.late_changes is 'Late changes folded or found to be in the raw events read.';
comment on column usage.refresh_run.waited_for is 'The writers it stopped waiting for: pid, application, age.';
comment on column usage.refresh_run.error is 'Why it failed, in one line.';

create table usage.verification (
    id           bigint generated always as identity,
    verified_at  timestamptz not null default clock_timestamp(),
    day_from     date        not null,
    day_to       date        not null,
    differences  bigint      not null,
    repaired     boolean     not null,
    constraint verification_pkey primary key (id)
);
create index verification_days on usage.verification (day_from, day_to);
comment on table usage.verification is 'When which days were compared with the raw events, and what was found.';
comment on column usage.verification.day_from is 'First day compared.';
comment on column usage.verification.day_to is 'Day after the last one compared.';
comment on column usage.verification.differences is 'Rollup rows that differed; 0 means equal.';
comment on column usage.verification.repaired is 'Whether the differences were folded in the same transaction.';

create table usage.restatement (
    id               bigint generated always as identity,
    restated_at      timestamptz not null default clock_timestamp(),
    run_id           bigint,
    rollup           text        not null default 'daily',
    bucket           date        not null,
    collection_id    uuid,
    resource_type    text        collate "C",
    job_type         text        collate "C",
    model_level      text        collate "C",
    event_count      bigint      not null,
    total_value      numeric     not null,
    secondary_value  numeric     not null,
    rejected_count   bigint      not null,
    reason           text        not null,
    constraint restatement_pkey primary key (id),
    constraint restatement_rollup check (rollup in ('daily', 'monthly', 'daily_collection', 'monthly_collection', 'daily_total')),
    constraint restatement_reason check (reason in ('late', 'deleted', 'redefined', 'repaired'))
);
create index restatement_bucket on usage.restatement (bucket);
comment on table usage.restatement is
'Which past days a run changed, by how much and why: late and deleted come from late changes, repaired from verify.';
comment on column usage.restatement.run_id is 'The refresh_run, or null for a verification.';
comment on column usage.restatement.rollup is 'The table that was changed; late and deleted changes appear under daily only.';
comment on column usage.restatement.bucket is 'The day (or the month''s first day) that was changed.';
comment on column usage.restatement.event_count is 'Difference that was added.';
comment on column usage.restatement.total_value is 'Difference that was added.';
comment on column usage.restatement.secondary_value is 'Difference that was added.';
comment on column usage.restatement.rejected_count is 'Difference that was added.';
