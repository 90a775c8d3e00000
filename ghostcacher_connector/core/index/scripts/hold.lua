-- Prolong the lease of a worker's entries in one partition; return how many there are.
-- KEYS[1]: the blocks key. ARGV[1]: lease (ms). A key of another type was not written by us: it counts as empty.

local count = try('HLEN', KEYS[1])
if type(count) == 'table' then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return count
