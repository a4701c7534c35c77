//! One connection: reading requests as HTTP/1.1 frames them, and answering each.

use std::borrow::Cow;
use std::io;

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::anthropic::Anthropic;
use super::gemini::Gemini;
use super::openai_chat::OpenAiChat;
use super::openai_responses::OpenAiResponses;
use super::said::Dialect;
use super::script::Script;
use super::{Provider, others, play};

const MOST_HEADERS: usize = 64;
const LONGEST_HEAD: usize = 64 << 10;
const LONGEST_BODY: usize = 256 << 20;

/// What is read of a request before its body.
struct Head {
    method: String,
    path: String,
    script: Option<String>,
    anthropic: bool,
    length: usize,
    chunked: bool,
    expects: bool,
    closes: bool,
}

/// The members that every dialect has in its body, except that Gemini has them in its path.
#[derive(Deserialize)]
struct Members<'b> {
    #[serde(borrow, default)]
    model: Option<Cow<'b, str>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Answers request after request until one side has had enough.
pub async fn serve(provider: Provider, mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(16 << 10);
    let mut scratch = Vec::new();
    loop {
        let Some((head, length)) = read_head(&mut stream, &mut buffer).await? else { return Ok(()) };
        buffer.advance(length);
        if head.expects {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let body = match head.chunked {
            true => read_chunks(&mut stream, &mut buffer).await?,
            false => {
                fill(&mut stream, &mut buffer, head.length).await?;
                buffer.split_to(head.length).freeze()
            }
        };
        if !answer(&provider, &head, &body, &mut stream, &mut scratch).await? || head.closes {
            return stream.shutdown().await;
        }
    }
}

/// False if the connection is over.
async fn answer(
    provider: &Provider,
    head: &Head,
    body: &Bytes,
    stream: &mut TcpStream,
    scratch: &mut Vec<u8>,
) -> io::Result<bool> {
    let path = head.path.split('?').next().unwrap_or_default();
    let Some((number, dialect)) = dialect(&head.method, path) else {
        let answer = others::answer(&head.method, path, head.anthropic, body);
        let (status, document) = match answer {
            Some(document) => (200, document),
            None => (404, OpenAiChat.error(404, &format!("there is no {} {path}", head.method))),
        };
        return plain(status, &document.to_string(), stream).await;
    };
    let Ok(members) = serde_json::from_slice::<Members<'_>>(body) else {
        return plain(400, &dialect.error(400, "the body is no JSON object").to_string(), stream).await;
    };
    let (model, streamed) = match path.rsplit_once("/models/").and_then(|(_, rest)| rest.rsplit_once(':')) {
        Some((model, method)) => (Cow::from(model), method == "streamGenerateContent"),
        None => (members.model.unwrap_or_default(), members.stream.unwrap_or(false)),
    };
    let stream_usage = members.stream_options.is_some_and(|options| options.include_usage);

    scratch.clear();
    scratch.extend_from_slice(&[number, u8::from(streamed), u8::from(stream_usage)]);
    scratch.extend_from_slice(model.as_bytes());
    if let Some(script) = &head.script {
        scratch.push(0);
        scratch.extend_from_slice(script.as_bytes());
    }
    if let Some(known) = provider.recall(scratch) {
        stream.write_all(&known).await?;
        return Ok(true);
    }

    // A provider's name may stand before the model's.
    let own = model.rsplit('/').next().unwrap_or_default();
    let script = match Script::read(head.script.as_deref().unwrap_or(own)) {
        Ok(script) => script,
        Err(message) => return plain(400, &dialect.error(400, &message).to_string(), stream).await,
    };
    let asked = script.wants_request().then(|| dialect.asked(&serde_json::from_slice(body).unwrap_or_default()));
    let prepared = play::prepare(dialect, &script, &model, asked.as_ref(), streamed, stream_usage);
    if !script.is_only_bytes() {
        return play::play(&prepared, &script, stream).await;
    }
    let bytes = play::bytes(&prepared, &script);
    if !script.wants_request() {
        provider.remember(scratch.clone(), &bytes);
    }
    stream.write_all(&bytes).await?;
    Ok(true)
}

fn dialect(method: &str, path: &str) -> Option<(u8, &'static dyn Dialect)> {
    if method != "POST" {
        return None;
    }
    let dialects: [(&str, &'static dyn Dialect); 5] = [
        ("/chat/completions", &OpenAiChat),
        ("/responses", &OpenAiResponses),
        ("/messages", &Anthropic),
        (":generateContent", &Gemini),
        (":streamGenerateContent", &Gemini),
    ];
    let found = (0..).zip(dialects).find(|(_, (end, _))| path.ends_with(end))?;
    Some((found.0, found.1.1))
}

async fn plain(status: u16, body: &str, stream: &mut TcpStream) -> io::Result<bool> {
    let answer = format!(
        "HTTP/1.1 {status} Script\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    Ok(true)
}

/// The next request's head and its length; `None` if the caller has left instead.
async fn read_head(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Option<(Head, usize)>> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = if buffer.is_empty() { Ok(httparse::Status::Partial) } else { request.parse(buffer) };
        match parsed.map_err(io::Error::other)? {
            httparse::Status::Complete(length) => return Ok(Some((head(&request), length))),
            httparse::Status::Partial if buffer.len() > LONGEST_HEAD => return Err(io::Error::other("a long head")),
            httparse::Status::Partial => {}
        }
        buffer.reserve(8 << 10);
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn head(request: &httparse::Request<'_, '_>) -> Head {
    let mut head = Head {
        method: request.method.unwrap_or_default().to_owned(),
        path: request.path.unwrap_or_default().to_owned(),
        script: None,
        anthropic: false,
        length: 0,
        chunked: false,
        expects: false,
        closes: false,
    };
    for header in request.headers.iter() {
        let value = || String::from_utf8_lossy(header.value);
        match header.name {
            name if name.eq_ignore_ascii_case("content-length") => head.length = value().trim().parse().unwrap_or(0),
            name if name.eq_ignore_ascii_case("transfer-encoding") => head.chunked = true,
            name if name.eq_ignore_ascii_case("expect") => head.expects = true,
            name if name.eq_ignore_ascii_case("connection") => head.closes = value().eq_ignore_ascii_case("close"),
            name if name.eq_ignore_ascii_case("anthropic-version") => head.anthropic = true,
            name if name.eq_ignore_ascii_case("x-script") => head.script = Some(value().into_owned()),
            _ => {}
        }
    }
    head
}

/// Reads until so many bytes are there.
async fn fill(stream: &mut TcpStream, buffer: &mut BytesMut, length: usize) -> io::Result<()> {
    if length > LONGEST_BODY {
        return Err(io::Error::other("a long body"));
    }
    while buffer.len() < length {
        buffer.reserve(length - buffer.len());
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

async fn read_chunks(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Bytes> {
    let mut body = BytesMut::new();
    loop {
        let line = loop {
            if let Some(end) = memchr::memmem::find(buffer, b"\r\n") {
                break buffer.split_to(end + 2);
            }
            fill(stream, buffer, buffer.len() + 1).await?;
        };
        let line = String::from_utf8_lossy(&line);
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length = usize::from_str_radix(digits, 16).map_err(io::Error::other)?;
        if length > LONGEST_BODY || body.len() + length > LONGEST_BODY {
            return Err(io::Error::other("a long body"));
        }
        fill(stream, buffer, length + 2).await?;
        body.extend_from_slice(&buffer.split_to(length));
        buffer.advance(2);
        if length == 0 {
            return Ok(body.freeze());
        }
    }
}
