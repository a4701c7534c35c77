"""What the regeneration of the catalogue promises. Run by scripts/test."""

import unittest

from catalog import files, mapping, sources

ENTRY = {
    "litellm_provider": "example",
    "mode": "chat",
    "max_input_tokens": 1000.0,
    "max_output_tokens": 100,
    "supports_vision": True,
    "supports_function_calling": True,
    "input_cost_per_token": 1.25e-06,
    "output_cost_per_token": 1e-05,
    "cache_read_input_token_cost": 1.25e-07,
}


def entry(**more):
    return ENTRY | more


class Mapping(unittest.TestCase):
    def test_a_model_has_what_the_list_says_and_nothing_more(self):
        expected = (
            "{ context: 1000, max_output: 100, input: [text, image], tools: true, "
            "prices: { input: 1.25, output: 10, cache_read: 0.125 } }"
        )
        self.assertEqual(files.flow(mapping.model(ENTRY)), expected)

    def test_a_zero_says_nothing(self):
        self.assertNotIn("prices", mapping.model(entry(
            input_cost_per_token=0, output_cost_per_token=0.0, cache_read_input_token_cost=0,
        )))

    def test_a_price_with_a_mistaken_unit_is_left_out(self):
        self.assertNotIn("prices", mapping.model(entry(input_cost_per_token=0.1)))
        self.assertNotIn("prices", mapping.model(entry(mode="embedding", input_cost_per_token=1e-04)))

    def test_prices_keep_their_digits(self):
        for written, expected in ((4.9e-09, "0.0049"), (1.1e-07, "0.11"), (3e-06, "3"), (0.00015, "150")):
            self.assertEqual(str(mapping.number(mapping.per_million(written))), expected)

    def test_tiers_come_from_keys_or_from_ranges(self):
        costs = mapping.model(entry(
            input_cost_per_token_above_200k_tokens=2.5e-06, output_cost_per_token_above_200k_tokens=1.5e-05,
            input_cost_per_token_above_200k_tokens_priority=9e-06,
        ))["prices"]
        self.assertEqual(files.flow(costs["tiers"]), "[{ above: 200000, input: 2.5, output: 15 }]")
        ranged = mapping.model({
            "mode": "chat",
            "tiered_pricing": [
                {"range": [0, 256000.0], "input_cost_per_token": 4e-07, "output_cost_per_token": 1.2e-06},
                {"range": [256000.0, 1e6], "input_cost_per_token": 1.2e-06, "output_cost_per_token": 3.6e-06},
            ],
        })
        expected = "{ input: 0.4, output: 1.2, tiers: [{ above: 256000, input: 1.2, output: 3.6 }] }"
        self.assertEqual(files.flow(ranged["prices"]), expected)

    def test_what_is_not_counted_in_tokens_has_a_price_for_one(self):
        for mode, key, expected in (
            ("image_generation", "output_cost_per_image", "{ image: 0.04 }"),
            ("audio_transcription", "input_cost_per_second", "{ second: 0.04 }"),
            ("audio_speech", "input_cost_per_character", "{ character: 0.04 }"),
            ("rerank", "input_cost_per_query", "{ request: 0.04 }"),
            ("chat", "input_cost_per_request", "{ request: 0.04 }"),
        ):
            self.assertEqual(files.flow(mapping.model({"mode": mode, key: 0.04})["prices"]), expected, mode)

    def test_a_class_is_a_multiple_only_if_input_and_output_agree(self):
        agreeing = entry(input_cost_per_token_batches=6.25e-07, output_cost_per_token_batches=5e-06)
        self.assertEqual(str(mapping.model(agreeing)["prices"]["batch"]), "0.5")
        self.assertNotIn("batch", mapping.model(agreeing | {"output_cost_per_token_batches": 1e-06})["prices"])

    def test_what_we_do_not_serve_is_no_model(self):
        for mode in ("video_generation", "search", None):
            self.assertIsNone(mapping.model(entry(mode=mode)))

    def test_a_model_of_responses_only_says_so(self):
        self.assertEqual(mapping.model(entry(mode="responses"))["formats"], ["openai_responses"])
        both = entry(supported_endpoints=["/v1/chat/completions", "/v1/responses"])
        self.assertNotIn("formats", mapping.model(both))


class Sources(unittest.TestCase):
    def names(self, listed, **more):
        source = sources.Source("example", ("example",), "example/", **more)
        return sorted(sources.models_of(source, {key: entry() for key in listed}))

    def test_names_are_the_provider_s_own(self):
        listed = ["example/a", "b", "example/with space", 'example/with"quote']
        self.assertEqual(self.names(listed), ["a"])
        self.assertEqual(self.names(listed[:2], bare=True), ["a", "b"])
        self.assertEqual(self.names(["example/eu/a", "example/a"], without="/"), ["a"])

    def test_a_name_with_its_prefix_goes_before_one_without(self):
        listed = {"a": entry(max_input_tokens=1), "example/a": entry(max_input_tokens=2)}
        source = sources.Source("example", ("example",), "example/", bare=True)
        for order in (listed, dict(reversed(listed.items()))):
            self.assertEqual(sources.models_of(source, order)["a"]["context"], 2)

    def test_every_source_is_listed_once(self):
        names = [source.file for source in sources.SOURCES]
        self.assertEqual(names, sorted(set(names)))


class Files(unittest.TestCase):
    HEAD = "title: Example\nbase_urls: { openai_chat: https://api.example.com/v1 }"

    def test_the_head_and_kept_models_stay(self):
        before = self.HEAD + '\nmodels:\n  mine: { keep: true, context: 1 }\n  old: { context: 2 }\n'
        after, differences = files.regenerate(before, {"b:1": {"context": 3}, "mine": {"context": 9}})
        self.assertEqual(after, self.HEAD + '\nmodels:\n  "b:1": { context: 3 }\n  mine: { keep: true, context: 1 }\n')
        self.assertEqual(differences, ["added b:1", "removed old"])

    def test_what_is_regenerated_twice_does_not_change(self):
        models = {"a": mapping.model(ENTRY), "B/c@d": {}, "1": {"deprecated": "2026-01-01"}}
        once, _ = files.regenerate(self.HEAD + "\n", models)
        twice, differences = files.regenerate(once, models)
        self.assertEqual((once, []), (twice, differences))

    def test_a_changed_price_is_shown(self):
        before, _ = files.regenerate(self.HEAD, {"a": mapping.model(ENTRY)})
        _, differences = files.regenerate(before, {"a": mapping.model(entry(output_cost_per_token=2e-05))})
        self.assertEqual(differences, [
            "price of a: { input: 1.25, output: 10, cache_read: 0.125 } -> { input: 1.25, output: 20, cache_read: 0.125 }",
        ])


if __name__ == "__main__":
    unittest.main()
