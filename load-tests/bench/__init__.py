"""scripts/bench in reading order: cli, prepare, peers, load, measure, scenarios, report; processes is below them all."""
