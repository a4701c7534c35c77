//! The JSON of Gemini's contents, which requests and answers share, both ways. Senders may write `snake_case`, as
//! Google's own libraries do.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::ai::formats::tolerant;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Content<'w> {
    #[serde(borrow, deserialize_with = "tolerant::list")]
    pub parts: Vec<Part<'w>>,
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub role: Option<Cow<'w, str>>,
}

/// One of its fields says of what kind it is; `thought` and `thought_signature` go with any.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Part<'w> {
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub text: Option<Cow<'w, str>>,
    #[serde(borrow, alias = "inline_data", skip_serializing_if = "Option::is_none")]
    pub inline_data: Option<Blob<'w>>,
    #[serde(borrow, alias = "file_data", skip_serializing_if = "Option::is_none")]
    pub file_data: Option<FileData<'w>>,
    #[serde(borrow, alias = "function_call", skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCall<'w>>,
    #[serde(borrow, alias = "function_response", skip_serializing_if = "Option::is_none")]
    pub function_response: Option<FunctionResponse<'w>>,
    #[serde(deserialize_with = "tolerant::default", skip_serializing_if = "std::ops::Not::not")]
    pub thought: bool,
    #[serde(
        borrow,
        alias = "thought_signature",
        deserialize_with = "tolerant::text",
        skip_serializing_if = "Option::is_none"
    )]
    pub thought_signature: Option<Cow<'w, str>>,
    /// What has no place in the neutral form: code that was run, the cut of a video.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Blob<'w> {
    #[serde(borrow, alias = "mime_type", deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub mime_type: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub data: Option<Cow<'w, str>>,
    #[serde(
        borrow,
        alias = "display_name",
        deserialize_with = "tolerant::text",
        skip_serializing_if = "Option::is_none"
    )]
    pub display_name: Option<Cow<'w, str>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FileData<'w> {
    #[serde(borrow, alias = "mime_type", deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub mime_type: Option<Cow<'w, str>>,
    #[serde(borrow, alias = "file_uri", deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub file_uri: Option<Cow<'w, str>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FunctionCall<'w> {
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub id: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::raw", skip_serializing_if = "Option::is_none")]
    pub args: Option<Cow<'w, RawValue>>,
    /// Pieces of arguments, where the caller has asked for them with `streamFunctionCallArguments`.
    #[serde(borrow, alias = "partial_args", deserialize_with = "tolerant::list", skip_serializing)]
    pub partial_args: Vec<PartialArg<'w>>,
    #[serde(alias = "will_continue", deserialize_with = "tolerant::default", skip_serializing)]
    pub will_continue: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PartialArg<'w> {
    #[serde(borrow, alias = "json_path", deserialize_with = "tolerant::text")]
    pub json_path: Option<Cow<'w, str>>,
    #[serde(borrow, alias = "string_value", deserialize_with = "tolerant::text")]
    pub string_value: Option<Cow<'w, str>>,
    #[serde(alias = "number_value")]
    pub number_value: Option<serde_json::Number>,
    #[serde(alias = "bool_value")]
    pub bool_value: Option<bool>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FunctionResponse<'w> {
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub id: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::raw", skip_serializing_if = "Option::is_none")]
    pub response: Option<Cow<'w, RawValue>>,
    #[serde(borrow, deserialize_with = "tolerant::list", skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part<'w>>,
}

/// An answer, and each event of a streamed one.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Answer<'w> {
    #[serde(borrow, deserialize_with = "tolerant::list", skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate<'w>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub prompt_feedback: Option<PromptFeedback<'w>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_metadata: Option<UsageMetadata>,
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub model_version: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing)]
    pub create_time: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub response_id: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::raw", skip_serializing)]
    pub error: Option<Cow<'w, RawValue>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Candidate<'w> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content<'w>>,
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<Cow<'w, str>>,
    #[serde(deserialize_with = "tolerant::count")]
    pub index: Option<u64>,
    /// What is told about the answer: citations, sources, ratings.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PromptFeedback<'w> {
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub block_reason: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text", skip_serializing_if = "Option::is_none")]
    pub block_reason_message: Option<Cow<'w, str>>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UsageMetadata {
    #[serde(deserialize_with = "tolerant::integer", skip_serializing_if = "Option::is_none")]
    pub prompt_token_count: Option<i64>,
    #[serde(deserialize_with = "tolerant::integer", skip_serializing_if = "Option::is_none")]
    pub candidates_token_count: Option<i64>,
    #[serde(deserialize_with = "tolerant::integer", skip_serializing_if = "Option::is_none")]
    pub total_token_count: Option<i64>,
    #[serde(deserialize_with = "tolerant::integer", skip_serializing_if = "Option::is_none")]
    pub cached_content_token_count: Option<i64>,
    #[serde(deserialize_with = "tolerant::integer", skip_serializing_if = "Option::is_none")]
    pub tool_use_prompt_token_count: Option<i64>,
    #[serde(deserialize_with = "tolerant::integer", skip_serializing_if = "Option::is_none")]
    pub thoughts_token_count: Option<i64>,
    #[serde(deserialize_with = "tolerant::list", skip_serializing_if = "Vec::is_empty")]
    pub prompt_tokens_details: Vec<ModalityTokens>,
    #[serde(deserialize_with = "tolerant::list", skip_serializing_if = "Vec::is_empty")]
    pub candidates_tokens_details: Vec<ModalityTokens>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ModalityTokens {
    pub modality: Option<Cow<'static, str>>,
    #[serde(deserialize_with = "tolerant::integer")]
    pub token_count: Option<i64>,
}
