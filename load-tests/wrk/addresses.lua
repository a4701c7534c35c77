-- Every request from another client, as a proxy in front would tell: wrk http://127.0.0.1:8080 -s addresses.lua -- START
-- The addresses of each thread begin with START in a network of its own of 16 million.
dofile(debug.getinfo(1, "S").source:match("@?(.*/)") .. "report.lua")

local head, address, started = "", 0, 0

function setup(thread)
   thread:set("network", 11 + started)
   started = started + 1
end

function init(arguments)
   address = tonumber(arguments[1] or 0)
   head = "GET " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\nX-Forwarded-For: "
end

function request()
   address = address + 1
   return string.format("%s%d.%d.%d.%d\r\n\r\n", head, network,
      math.floor(address / 65536) % 256, math.floor(address / 256) % 256, address % 256)
end
