-- Return the fields of a report: {server time (s, us), name, value, name, value, ...}. A key of another type, and one with
-- too many fields, was not written by us: it is empty.
-- KEYS[1]: the report. ARGV: most fields.

local time = redis.call('TIME')
local answer = { time[1], time[2] }
local count = try('HLEN', KEYS[1])
if type(count) == 'table' or count > tonumber(ARGV[1]) then return answer end
for _, text in ipairs(redis.call('HGETALL', KEYS[1])) do answer[#answer + 1] = text end
return answer
