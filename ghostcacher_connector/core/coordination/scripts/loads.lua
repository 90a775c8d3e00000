-- Return {server time (s, us), values of the keys}. A key of another type has no value.

local time = redis.call('TIME')
return { time[1], time[2], redis.call('MGET', unpack(KEYS)) }
