"""From an entry of the price list to a model of ours. A price of 0 in the list means free or unknown, so it says nothing."""

from decimal import Decimal

MODES = {
    "chat": "chat",
    "responses": "chat",
    "completion": "completion",
    "embedding": "embedding",
    "image_generation": "image",
    "image_edit": "image",
    "audio_speech": "audio_speech",
    "audio_transcription": "audio_transcription",
    "moderation": "moderation",
    "rerank": "rerank",
    "realtime": "realtime",
}

# Dollars per token -> ours, dollars per million tokens.
PER_TOKEN = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "reasoning": "output_cost_per_reasoning_token",
    "cache_read": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_long": "cache_creation_input_token_cost_above_1hr",
    "audio_input": "input_cost_per_audio_token",
    "audio_output": "output_cost_per_audio_token",
    "image_input": "input_cost_per_image_token",
    "image_output": "output_cost_per_image_token",
}
# By mode: our price for one of something, and the list's words for it. What the list calls the input of an image is older.
PER_UNIT = {
    "image": {"image": ("output_cost_per_image", "input_cost_per_image")},
    "audio_transcription": {"second": ("input_cost_per_second", "output_cost_per_second")},
    "audio_speech": {"character": ("input_cost_per_character",)},
    "rerank": {"request": ("input_cost_per_request", "input_cost_per_query")},
}
PER_CALL = {"request": ("input_cost_per_request",)}
TIERED = ("input", "output", "reasoning", "cache_read", "cache_write", "cache_write_long")

# What these are like if they have no price of their own.
LIKE = {
    "reasoning": "output",
    "audio_input": "input",
    "audio_output": "output",
    "image_input": "input",
    "image_output": "output",
}

# Of a call's service class, in parts of the price.
CLASSES = {"batch": "batches", "flex": "flex", "priority": "priority"}

# No model costs as much for a million tokens: somebody has mistaken the unit.
MOST = Decimal(1000)
MOST_OF_EMBEDDINGS = Decimal(20)


def model(entry):
    """A model, or None if it is of no kind that we serve."""
    mode = MODES.get(entry.get("mode"))
    if mode is None:
        return None
    made = {}
    if mode != "chat":
        made["mode"] = mode
    context = tokens(entry, "max_input_tokens") or tokens(entry, "max_tokens")
    if context:
        made["context"] = context
    longest = tokens(entry, "max_output_tokens")
    if longest and mode in ("chat", "completion", "realtime"):
        made["max_output"] = longest
    given, answered = modalities(entry, mode)
    if given != ["text"]:
        made["input"] = given
    if answered != ["text"]:
        made["output"] = answered
    if mode in ("chat", "realtime"):
        for name, key in (
            ("tools", "supports_function_calling"),
            ("json_schema", "supports_response_schema"),
            ("reasoning", "supports_reasoning"),
        ):
            if isinstance(entry.get(key), bool):
                made[name] = entry[key]
    if entry["mode"] == "responses" or only_responses(entry):
        made["formats"] = ["openai_responses"]
    costs = prices(entry, mode)
    if costs:
        made["prices"] = costs
    deprecated = entry.get("deprecation_date")
    if isinstance(deprecated, str) and len(deprecated) == 10:
        made["deprecated"] = deprecated
    return made


def tokens(entry, key):
    value = entry.get(key)
    return int(value) if isinstance(value, (int, float)) and value > 0 else None


def only_responses(entry):
    endpoints = entry.get("supported_endpoints") or []
    return "/v1/responses" in endpoints and not any("chat/completions" in endpoint for endpoint in endpoints)


def modalities(entry, mode):
    given = set(entry.get("supported_modalities") or [])
    answered = set(entry.get("supported_output_modalities") or [])
    for name, keys in (
        ("image", ("supports_vision", "supports_image_input", "supports_embedding_image_input")),
        ("audio", ("supports_audio_input",)),
        ("video", ("supports_video_input",)),
        ("document", ("supports_pdf_input",)),
    ):
        if any(entry.get(key) is True for key in keys):
            given.add(name)
    if entry.get("supports_audio_output") is True:
        answered.add("audio")
    if mode == "audio_transcription":
        given, answered = {"audio"}, {"text"}
    elif mode == "audio_speech":
        given, answered = {"text"}, {"audio"}
    elif mode == "image":
        given, answered = given | {"text"}, answered | {"image"}
    else:
        given.add("text")
        answered = answered if mode in ("chat", "realtime") else {"text"}
        answered.add("text")
    order = ["text", "image", "audio", "video", "document"]
    return [name for name in order if name in given], [name for name in order if name in answered]


def prices(entry, mode):
    costs = {name: per_million(entry.get(key)) for name, key in PER_TOKEN.items()}
    if mode == "embedding":
        costs["output"] = None
    tiers = steps(entry) or ranges(entry)
    if not costs["input"] and not costs["output"] and tiers and tiers[0]["above"] == 0:
        costs |= {name: cost for name, cost in tiers[0].items() if name != "above"}
    tiers = [tier for tier in tiers if tier["above"] > 0]
    most = MOST_OF_EMBEDDINGS if mode == "embedding" else MOST
    if any(cost and cost > most for cost in costs.values()):
        return {}
    for name, like in LIKE.items():
        if costs.get(name) == costs.get(like):
            costs[name] = None
    made = {name: number(cost) for name, cost in costs.items() if cost}
    made |= {name: number(cost) for name, cost in units(entry, mode).items() if cost}
    if not made:
        return {}
    search = entry.get("search_context_cost_per_query")
    if isinstance(search, dict) and (cost := exact(search.get("search_context_size_medium"))):
        made["search"] = number(cost)
    if tiers and "input" in made:
        made["tiers"] = [
            {"above": tier["above"]} | {name: number(tier[name]) for name in TIERED if tier.get(name)} for tier in tiers
        ]
    for name, suffix in CLASSES.items():
        if (part := multiple(entry, suffix)) is not None:
            made[name] = number(part)
    return made


def units(entry, mode):
    """What is not counted in tokens, in dollars for one."""
    return {
        name: next((cost for key in keys if (cost := per_unit(entry.get(key)))), None)
        for name, keys in (PER_CALL | PER_UNIT.get(mode, {})).items()
    }


def steps(entry):
    """Prices of long prompts: keys such as `input_cost_per_token_above_200k_tokens`."""
    tiers = {}
    for name in TIERED:
        start = PER_TOKEN[name] + "_above_"
        for key, value in entry.items():
            rest = key.removeprefix(start)
            if rest != key and rest.endswith("k_tokens") and rest[:-8].isdigit() and per_million(value):
                tiers.setdefault(int(rest[:-8]) * 1000, {})[name] = per_million(value)
    return [{"above": above} | tier for above, tier in sorted(tiers.items())]


def ranges(entry):
    """Prices by ranges of the prompt's length: the first one holds from 0."""
    tiers = []
    for part in entry.get("tiered_pricing") or []:
        if not isinstance(part.get("range"), list):
            return []
        tier = {name: per_million(part.get(PER_TOKEN[name])) for name in TIERED}
        tiers.append({"above": int(part["range"][0])} | {name: cost for name, cost in tier.items() if cost})
    return sorted(tiers, key=lambda tier: tier["above"])


def multiple(entry, suffix):
    """What a class of calls costs in parts of the price, if input and output agree."""
    parts = []
    for name in ("input", "output"):
        usual, own = exact(entry.get(PER_TOKEN[name])), exact(entry.get(f"{PER_TOKEN[name]}_{suffix}"))
        if usual and own:
            parts.append((own / usual).quantize(Decimal("0.000001")))
    return parts[0] if parts and len(set(parts)) == 1 and parts[0] != 1 else None


def exact(value):
    """The number as it is written in the list, or None if it says nothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        return None
    return Decimal(repr(value))


def per_million(value):
    cost = exact(value)
    # The smallest step of a price of ours; the list has a few quotients with more digits.
    return ((cost * 1_000_000).quantize(Decimal("0.000001")) or None) if cost else None


def per_unit(value):
    cost = exact(value)
    return (cost.quantize(Decimal("0.000000000001")) or None) if cost else None


def number(value):
    text = format(value.normalize(), "f")
    return Plain(text.rstrip("0").rstrip(".") if "." in text else text)


class Plain:
    """A number with exactly these digits."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text

    def __eq__(self, other):
        return str(self) == str(other)

    def __repr__(self):
        return self.text
