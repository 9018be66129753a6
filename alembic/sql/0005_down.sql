-- Back to 0004.

alter table usage.state drop column doubts;
drop sequence usage.doubt_seq;

alter function usage.fingerprint_doubt() reset row_security;
alter function usage.title_of(uuid) reset row_security;
alter function usage.by_collection(timestamptz, timestamptz, uuid) reset row_security;
alter function usage.ai_drilldown(timestamptz, timestamptz, uuid) reset row_security;
alter function usage.overview_rows(timestamptz, timestamptz, uuid) reset row_security;

do $$
declare
    patched record;
begin
    for patched in
        select f.name, replace(pg_get_functiondef(f.name::regprocedure), 'undefined_column or insufficient_privilege then', 'undefined_column then') as text
          from unnest(array['usage.tail_events(bigint)', 'usage.hourly_gain(integer, integer)',
                            'usage.problems(interval, interval, bigint, numeric, interval)']) f (name)
    loop
        execute regexp_replace(patched.text, '\n    for failed in\n        select f\.code, f\.name\n.*?\n    end loop;\n', '');
    end loop;
end $$;

drop trigger keep_attached on usage.state;
drop function usage.keep_attached();

alter table usage.state drop column rolled_days;
drop function usage.moved_day(boolean);
drop function usage.seal_day(timestamptz, text);
drop table usage.rolled_day;
