-- Requests by many callers, with the lines of FILE as their header NAME: wrk -t 1 http://127.0.0.1:8080 -s credentials.lua -- FILE NAME
-- With the number of wrk's threads behind them each line is sent once, and then nothing more.
dofile(debug.getinfo(1, "S").source:match("@?(.*/)") .. "report.lua")

local requests, count, turn, stride, once = {}, 0, 0, 7919, false
local started = 0

function setup(thread)
   thread:set("number", started)
   started = started + 1
end

function init(arguments)
   for line in io.lines(arguments[1]) do
      requests[count] = wrk.format("GET", nil, { [arguments[2]] = line })
      count = count + 1
   end
   if arguments[3] then
      once, stride = true, tonumber(arguments[3])
      turn = number - stride
   else
      -- Short runs, one after the other, are to reach all of them too.
      math.randomseed(os.time() + number)
      turn = math.random(count)
   end
end

function request()
   -- Else a prime stride, so that neighbours in the configuration are not neighbours in time.
   turn = turn + stride
   if once and turn >= count then
      wrk.thread:stop()
      turn = count - 1
   end
   turn = turn % count
   return requests[turn]
end
