-- Return the fleet's seed, made from the one that is offered when there is none; prolong it.
-- KEYS[1]: the seed. ARGV: the seed on offer (16 hex digits), TTL (ms).

local current = try('GET', KEYS[1])
if type(current) ~= 'string' or not string.match(current, '^' .. string.rep('%x', 16) .. '$') then
    current = ARGV[1]
end
redis.call('SET', KEYS[1], current, 'PX', ARGV[2])
return current
