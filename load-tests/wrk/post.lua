-- The same body again and again: wrk http://127.0.0.1:8080/v1/chat/completions -s post.lua -- BODY HEADERS
-- BODY and HEADERS are files; a header is a line `Name: value`.
dofile(debug.getinfo(1, "S").source:match("@?(.*/)") .. "report.lua")

local call

function init(arguments)
   local headers = {}
   for line in io.lines(arguments[2]) do
      local name, value = line:match("^(.-): (.*)$")
      headers[name] = value
   end
   local file = assert(io.open(arguments[1], "rb"))
   call = wrk.format("POST", nil, headers, file:read("*a"))
   file:close()
end

function request()
   return call
end
