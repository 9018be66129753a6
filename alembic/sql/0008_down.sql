-- Back to 0007, whose statements are run again first.

drop function usage.window_events(usage.window_parts, uuid, text);
drop function usage.are_well_formed(timestamptz[], timestamptz[]);
drop function usage.well_formed_text(integer, date, text, text, text);
drop function usage.metric_sql();
drop function usage.signed_events_sql(integer[], timestamptz[], timestamptz[], timestamptz, timestamptz, text, uuid, text);
select usage.restore_grants();
