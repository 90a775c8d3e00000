-- Return the entries of streams behind a cursor each, one by one, without the values that are too large to be ours.
--
-- KEYS: the streams. ARGV: a cursor for each, most entries of each, largest value (bytes), largest sum of values (bytes).
-- Returns for each stream a list of {id, value or ""}. It stops early rather than to return more than the sum.

local count, value_max, sum_max = tonumber(ARGV[#KEYS + 1]), tonumber(ARGV[#KEYS + 2]), tonumber(ARGV[#KEYS + 3])
local sum, answer = 0, {}
for i, key in ipairs(KEYS) do
    local cursor, page = ARGV[i], {}
    while #page < count and sum < sum_max do
        local found = try('XRANGE', key, '(' .. cursor, '+', 'COUNT', 1)
        if found.err or #found == 0 then break end
        local id, fields = found[1][1], found[1][2]
        local value = ''
        if #fields == 2 and fields[1] == 'd' and #fields[2] <= value_max then value = fields[2] end
        page[#page + 1] = { id, value }
        sum = sum + #value
        cursor = id
    end
    answer[i] = page
end
return answer
