-- One route, the same request again and again: wrk http://127.0.0.1:8080/ -s bare.lua
dofile(debug.getinfo(1, "S").source:match("@?(.*/)") .. "report.lua")
