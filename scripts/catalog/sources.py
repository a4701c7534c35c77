"""Which entries of the price list belong to which provider file."""

import re
from dataclasses import dataclass, field

from . import mapping


@dataclass(frozen=True)
class Source:
    """A provider file, and where the list has its models."""

    file: str
    # The list's words for the provider.
    listed: tuple
    # What stands before the provider's own names there; entries without it are left out unless `bare`.
    prefix: str = ""
    bare: bool = False
    # Names that are left out: price classes, regions, sizes of images and other names that the provider does not know.
    without: str = r"(?!)"
    # Formats by pattern of the name; the first that fits holds.
    formats: dict = field(default_factory=dict)


def models_of(source, listed):
    """The provider's models by its own names of them."""
    found = {}
    for key, entry in listed.items():
        name = own_name(source, key, entry)
        model = mapping.model(entry) if name else None
        if model is None:
            continue
        for pattern, formats in source.formats.items():
            if re.search(pattern, name):
                model["formats"] = formats
                break
        # Some stand there twice, with the prefix and without; the former is better kept.
        if name not in found or key != name:
            found[name] = in_order(model)
    return found


ORDER = (
    "mode", "context", "max_output", "input", "output", "tools", "json_schema", "reasoning", "formats", "prices", "deprecated",
)


def in_order(model):
    return {key: model[key] for key in ORDER if key in model}


NAME = re.compile(r"[!-~]{1,256}\Z")


def own_name(source, key, entry):
    if entry.get("litellm_provider") not in source.listed:
        return None
    name = key.removeprefix(source.prefix) if source.prefix else key
    if source.prefix and name == key and not source.bare:
        return None
    if not NAME.match(name) or '"' in name or "\\" in name or re.search(source.without, name):
        return None
    return name


def simple(file, listed=None, prefix=None, **more):
    listed = listed or file
    return Source(file, (listed,), prefix or f"{listed}/", **more)


# A name with a slash is a region, a size or a commitment there.
NO_SLASH = r"/"
ANTHROPIC = ["anthropic"]
OPENAI = ["openai_chat"]

SOURCES = [
    simple("ai21", bare=True, without=r"@|^j2-"),
    simple("aihubmix"),
    simple("aimlapi", "aiml"),
    simple("amazon_nova", prefix="amazon-nova/"),
    simple("anthropic", bare=True, without=r"^fast/|^us/|-v1:0$"),
    Source("azure", ("azure", "azure_text"), "azure/", without=NO_SLASH),
    Source(
        "azure_ai", ("azure_ai",), "azure_ai/",
        without=r"^doc-intelligence|model_router|^prebuilt",
        formats={r"^claude": ANTHROPIC},
    ),
    simple("baseten", without=r"decision-models"),
    Source("bedrock", ("bedrock", "bedrock_converse"), "bedrock/", bare=True, without=r"/|^converse|openai\.gpt-5\.[45]$"),
    simple("bedrock_mantle", without=r"^(us|eu|ap|sa|ca|me|af|il|mx|global)(-[a-z]+)+-\d/"),
    simple("cerebras"),
    simple("cloudflare", without=r"^(?!@)"),
    Source("cohere", ("cohere", "cohere_chat"), "cohere/", bare=True, without=r"^parse"),
    simple("crusoe"),
    simple("dashscope"),
    simple("databricks"),
    simple("deepinfra"),
    simple("deepseek", bare=True),
    simple("digitalocean", "gradient_ai"),
    simple("featherless", "featherless_ai"),
    Source("fireworks", ("fireworks_ai", "fireworks_ai-embedding-models"), "fireworks_ai/"),
    simple("friendli", "friendliai"),
    simple("gemini"),
    simple("gmi"),
    simple("groq"),
    simple("heroku"),
    simple("hyperbolic"),
    simple("inception"),
    simple("jina", "jina_ai", bare=True),
    simple("lambda", "lambda_ai"),
    simple("meta"),
    simple("meta_llama"),
    simple("minimax"),
    Source("mistral", ("mistral",), "mistral/"),
    simple("moonshot"),
    simple("morph"),
    simple("nebius"),
    simple("novita"),
    simple("nscale"),
    simple("nvidia", "nvidia_nim", without=r"^ranking/"),
    Source("openai", ("openai", "text-completion-openai"), "openai/", bare=True, without=r"/|^ft:|^container"),
    simple("ovhcloud"),
    simple("perplexity", without=r"/|^(?!sonar|pplx-embed)|^sonar-(small|medium)"),
    simple("publicai"),
    simple("sambanova"),
    simple("sarvam"),
    simple("scaleway"),
    simple("snowflake", formats={r"^(?!claude)": OPENAI}),
    simple("together", "together_ai"),
    simple("v0"),
    simple("vercel", "vercel_ai_gateway"),
    Source(
        "vertex",
        (
            "vertex_ai", "vertex_ai-language-models", "vertex_ai-embedding-models", "vertex_ai-anthropic_models",
            "vertex_ai-llama_models", "vertex_ai-deepseek_models", "vertex_ai-qwen_models", "vertex_ai-zai_models",
            "vertex_ai-openai_models", "vertex_ai-minimax_models", "vertex_ai-moonshot_models",
        ),
        "vertex_ai/", bare=True,
        without=r"^(gemini|vertex_ai)/|^imagen|^veo|^search|/search|chirp|^(multimodal|text-multilingual)?embedding.*@",
        formats={r"^claude": ANTHROPIC, r"^(meta|deepseek-ai|qwen|zai-org|openai|minimaxai|moonshotai|google|xai)/": OPENAI,
                 r"": ["gemini"]},
    ),
    simple("volcengine", bare=True),
    simple("voyage"),
    simple("wandb"),
    simple("xai"),
    simple("xiaomi_mimo"),
    simple("zai"),
    simple("zhipu", "bigmodel"),
]
