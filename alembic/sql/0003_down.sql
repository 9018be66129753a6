-- Back to 0002.
drop function usage.totals(timestamptz, timestamptz, text[], text, boolean, uuid);
drop function usage.window_before(timestamptz, timestamptz, text, text);
drop function usage.window_sums(timestamptz, timestamptz, uuid, boolean, boolean, boolean, text);
drop function usage.bucket_of(date, text);
