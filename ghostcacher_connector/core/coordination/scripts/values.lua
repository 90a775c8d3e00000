-- Return {server time (s, us), how many values are too large to be ours, the values of the keys}.
-- KEYS: where. ARGV: largest value (bytes). A key of another type, and one that is too large, has no value.

local time = redis.call('TIME')
local large, values = 0, {}
for i, key in ipairs(KEYS) do
    local size = try('STRLEN', key)
    if type(size) == 'table' then
        values[i] = false
    elseif size > tonumber(ARGV[1]) then
        large = large + 1
        values[i] = false
    else
        values[i] = size > 0 and redis.call('GET', key)
    end
end
return { time[1], time[2], large, values }
