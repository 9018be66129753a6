-- Privileges, until deploy/roles.sql is run again: whoever could use what was before can use what takes its place.

do $$
declare
    statement text;
begin
    for statement in
        select format('grant %s on usage.%I to %s%s', g.privilege_type, n.new, case g.grantee when 0 then 'public' else g.grantee::regrole::text end,
                      case when g.is_grantable then ' with grant option' else '' end)
          from (values ('daily', 'hourly'), ('daily_collection', 'hourly_collection'), ('daily_fact', 'hourly_fact'),
                       ('daily_collection_fact', 'hourly_collection_fact')) n (old, new)
          join pg_class c on c.oid = ('usage.' || n.old)::regclass,
               lateral aclexplode(c.relacl) g
         where g.grantee <> c.relowner and g.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
        union all
        select format('grant execute on function %s to %s%s', new.oid::regprocedure, a.grantee::regrole,
                      case when a.is_grantable then ' with grant option' else '' end)
          from (values ('fingerprint_doubt', array['range_sql', 'measured_sql', 'fact_sql', 'days_sql', 'window_events_sql', 'window_rows',
                                                   'hour_of', 'hours_to', 'hours_from', 'with_hours', 'is_of_hours', 'hour_fact_sql', 'hours_sql',
                                                   'keys_of', 'cut_window', 'lookback_reason']),
                       ('event', array['event_between', 'next_event', 'nth_event', 'distributed_sums']),
                       ('daily_series', array['daily_series']),
                       ('tail_events', array['hourly_gain'])) f (old, new)
          join pg_proc old on old.pronamespace = 'usage'::regnamespace and old.proname = f.old
          join pg_proc new on new.pronamespace = 'usage'::regnamespace and new.proname = any (f.new) and new.oid <> old.oid,
               aclexplode(old.proacl) a
         where a.grantee not in (0, old.proowner)
    loop
        execute statement;
    end loop;
end $$;

select usage.restore_grants();
