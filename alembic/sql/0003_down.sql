-- Back to 0002. Comments on columns stay: they were true before.
drop function usage.export_rows(timestamptz, timestamptz, text, uuid);
drop function usage.totals(timestamptz, timestamptz, text[], text, boolean, uuid);
drop function usage.window_before(timestamptz, timestamptz, text, text);
drop function usage.window_sums(timestamptz, timestamptz, uuid, boolean, boolean, boolean, text);
drop function usage.bucket_of(date, text);
