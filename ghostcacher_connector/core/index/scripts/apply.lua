-- Drop and enter blocks of one worker in one partition, and prolong their lease.
--
-- KEYS[1]: the blocks key.
-- ARGV: lease (ms), hash width (bytes), value width (bytes), hashes to drop, entries (hash, value) to enter;
--       the last two as one string each: the engine's interpreter joins bytes faster than it encodes arguments.
-- Returns nothing of use.
--
-- One script, not several commands: a connection that breaks between HSET and PEXPIRE would leave a key without a TTL,
-- which outlives its worker.

local key = KEYS[1]
local ttl_ms = tonumber(ARGV[1])
local width = tonumber(ARGV[2])
local value_width = tonumber(ARGV[3])
local CHUNK = 2000 -- items per command: Lua's unpack may put at most 8,000 values on the C stack

local kind = redis.call('TYPE', key).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('UNLINK', key) end

local function in_chunks(command, text, widths)
    local at, batch = 1, {}
    while at <= #text do
        for _, item_width in ipairs(widths) do
            batch[#batch + 1] = string.sub(text, at, at + item_width - 1)
            at = at + item_width
        end
        if #batch >= CHUNK then
            redis.call(command, key, unpack(batch))
            batch = {}
        end
    end
    if #batch > 0 then redis.call(command, key, unpack(batch)) end
end

in_chunks('HDEL', ARGV[4], { width })
in_chunks('HSET', ARGV[5], { width, value_width })
return redis.call('PEXPIRE', key, ttl_ms)
