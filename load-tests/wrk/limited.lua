-- Counts what a limit admits; what it refuses with a 429 is no error: wrk http://127.0.0.1:8080/limited -s limited.lua
dofile(debug.getinfo(1, "S").source:match("@?(.*/)") .. "report.lua")

local threads, report = {}, done

function setup(thread)
   table.insert(threads, thread)
end

function init()
   admitted, strange = 0, 0
end

function response(status)
   if status == 200 then
      admitted = admitted + 1
   elseif status ~= 429 then
      strange = strange + 1
   end
end

function done(summary, latency, requests)
   summary.admitted, summary.errors.status = 0, 0
   for _, thread in ipairs(threads) do
      summary.admitted = summary.admitted + thread:get("admitted")
      summary.errors.status = summary.errors.status + thread:get("strange")
   end
   report(summary, latency, requests)
end
