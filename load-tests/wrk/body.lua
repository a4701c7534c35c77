-- A request with a body, whose answer may be compressed: wrk http://127.0.0.1:8080 -s body.lua
dofile(debug.getinfo(1, "S").source:match("@?(.*/)") .. "report.lua")

wrk.method = "POST"
wrk.path = "/body/42?kind=order"
wrk.body = string.rep('{"id":42,"name":"an order"},', 40)
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Accept-Encoding"] = "gzip, br"
wrk.headers["Origin"] = "https://shop.example"
