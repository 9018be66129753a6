-- Back to 0008.

drop function usage.presumed_sql(timestamptz, timestamptz);
