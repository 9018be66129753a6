-- Back to 0003, last part: nothing needs what 0004 had any more.

drop view usage.narrow_daily, usage.narrow_daily_collection, usage.narrow_monthly, usage.narrow_monthly_collection;
drop table usage.daily_fact, usage.daily_collection_fact, usage.monthly_fact, usage.monthly_collection_fact, usage.key;
drop type usage.key_columns;

-- Whoever could run the functions that these are parts of.
do $$
declare
    statement text;
begin
    for statement in
        select format('grant execute on function %s to %s%s', new.oid::regprocedure, a.grantee::regrole,
                      case when a.is_grantable then ' with grant option' else '' end)
          from pg_proc new, pg_proc old, aclexplode(old.proacl) a
         where old.oid = 'usage.fingerprint_doubt()'::regprocedure and a.grantee not in (0, old.proowner)
           and new.pronamespace = 'usage'::regnamespace and new.proname in ('measured', 'window_rows')
    loop
        execute statement;
    end loop;
end $$;

select usage.restore_grants();
