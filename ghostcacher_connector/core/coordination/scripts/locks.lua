-- Return {token, router, worker, ready at} of each lock, {} of one that nobody holds. KEYS: the locks.

local held = {}
for i, key in ipairs(KEYS) do
    local fields = redis.pcall('HMGET', key, 't', 'r', 'w', 'a')
    held[i] = not fields.err and fields[1] and fields or {}
end
return held
