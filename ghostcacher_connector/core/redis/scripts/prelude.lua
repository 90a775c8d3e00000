-- Stands before every script.

-- Return the reply of a redis.pcall: a table with `err` when the key is of another type, which none of ours is.
-- Every other error ends the script: a user who lacks a permission must hear of it, and not see an empty Redis.
local function checked(reply)
    if type(reply) == 'table' and reply.err and not string.find(reply.err, 'WRONGTYPE', 1, true) then
        error(reply.err)
    end
    return reply
end

-- Run a command; return its checked reply. What runs thousands of times a call checks the rare replies alone.
local function try(...)
    return checked(redis.pcall(...))
end

-- Return the fields of a ghost lock: token, router, worker, ready at, stamp; nothing when that is not what lies there.
local function lock_fields(key, size_max)
    local names = { 't', 'r', 'w', 'a', 's' }
    for _, name in ipairs(names) do
        local size = try('HSTRLEN', key, name)
        if type(size) == 'table' or size > size_max then return false end
    end
    local fields = redis.call('HMGET', key, unpack(names))
    return fields[1] and fields
end
