-- Requests spread over N routes: wrk http://127.0.0.1:8080 -s routes.lua -- N
dofile(debug.getinfo(1, "S").source:match("@?(.*/)") .. "report.lua")

local requests, count, turn = {}, 0, 0

function init(arguments)
   count = tonumber(arguments[1] or 1000)
   for n = 0, count - 1 do
      requests[n] = wrk.format("GET", "/service/" .. n .. "/items/42")
   end
end

function request()
   -- A prime stride, so that neighbours in the configuration are not neighbours in time.
   turn = (turn + 7919) % count
   return requests[turn]
end
