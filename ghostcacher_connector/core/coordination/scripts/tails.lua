-- Return the id of the last entry of each stream, "0-0" when there is none.

local tails = {}
for i, key in ipairs(KEYS) do
    local last = try('XREVRANGE', key, '+', '-', 'COUNT', 1)
    tails[i] = not last.err and last[1] and last[1][1] or '0-0'
end
return tails
