-- Return the fields of a report: name, value, name, value, ... A key of another type was not written by us: it is empty.
-- KEYS[1]: the report.

local found = redis.pcall('HGETALL', KEYS[1])
if found.err then return {} end
return found
