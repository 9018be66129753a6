-- Back to 0005, whose statements are run again first.

drop function usage.moved_day(boolean, timestamptz, timestamptz);
do $$
declare
    grantee text;
begin
    for grantee in
        select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end
          from pg_proc p, aclexplode(p.proacl) a
         where p.oid = 'usage.fingerprint_doubt()'::regprocedure and a.grantee not in (0, p.proowner)
    loop
        execute format('grant execute on function usage.moved_day(boolean) to %s', grantee);
    end loop;
end $$;

select usage.restore_grants();
