//! Compresses answers for clients that accept it.

use std::io::{self, Write};

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    TRANSFER_ENCODING, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Version};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::units::Size;
use crate::error::{Error, Reason, Result};
use crate::filters::filter::{BodyTransform, Compiled, OnResponse, Response};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;

/// Compresses answers as the client's `Accept-Encoding` allows.
///
/// Left as they are: answers already encoded, partial ones, those without a body or with `Cache-Control: no-transform`,
/// those shorter than `min_size`, types not listed, and event streams always. A strong `ETag` becomes weak, for the
/// bytes are others now. An answer of unknown length is flushed piece by piece, so that nothing waits in the encoder.
///
/// ```yaml
/// compression:
///   algorithms: [zstd, br, gzip]
///   min_size: 1KiB
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is offered; of those a client likes equally, the first.
    pub algorithms: Vec<Algorithm>,
    /// Effort from 1 (fast) to 9 (small), on each algorithm's own scale.
    #[schemars(range(min = 1, max = 9))]
    pub level: u8,
    /// Shorter answers are not worth it.
    pub min_size: Size,
    /// Media types that are compressed: exact, or `text/*`.
    pub content_types: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            algorithms: vec![Algorithm::Zstd, Algorithm::Br, Algorithm::Gzip],
            level: 4,
            min_size: Size::kib(1),
            content_types: [
                "text/*",
                "application/json",
                "application/problem+json",
                "application/javascript",
                "application/xml",
                "application/x-ndjson",
                "application/wasm",
                "image/svg+xml",
            ]
            .map(String::from)
            .to_vec(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    Zstd,
    Br,
    Gzip,
}

impl Algorithm {
    fn token(self) -> &'static str {
        match self {
            Algorithm::Zstd => "zstd",
            Algorithm::Br => "br",
            Algorithm::Gzip => "gzip",
        }
    }
}

pub struct Compression(Config);

impl FilterKind for Compression {
    const NAME: &'static str = "compression";
    const STAGE: Stage = Stage::Transform;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let (path, problems) = (at.path, &mut *at.problems);
        let before = problems.0.len();
        if config.algorithms.is_empty() {
            problems.add(format!("{path}.algorithms"), "no algorithm is named, so this filter would do nothing");
        }
        if !(1..=9).contains(&config.level) {
            problems.add(format!("{path}.level"), "the level lies between 1 and 9");
        }
        (problems.0.len() == before).then(|| Compiled::on_response(Compression(config)))
    }
}

impl OnResponse for Compression {
    fn on_response(&self, response: &mut Response<'_>) {
        if !self.worth_it(response) {
            return;
        }
        // Whoever caches the answer has to know that it depends on this header, also when this client wants it plain.
        let _ = response.head.append_header(VARY, HeaderValue::from_static("Accept-Encoding"));
        let Some(algorithm) = negotiate(&response.request.headers, &self.0.algorithms) else { return };
        let streamed = !response.head.headers.contains_key(CONTENT_LENGTH);
        let Ok(encoder) = Encoder::new(algorithm, self.0.level) else { return };

        let head = &mut *response.head;
        head.remove_header(&CONTENT_LENGTH);
        head.remove_header(&ACCEPT_RANGES);
        let _ = head.insert_header(CONTENT_ENCODING, HeaderValue::from_static(algorithm.token()));
        let _ = head.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        let weak = head
            .headers
            .get(ETAG)
            .filter(|tag| tag.as_bytes().starts_with(b"\""))
            .and_then(|tag| HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()).ok());
        if let Some(weak) = weak {
            let _ = head.insert_header(ETAG, weak);
        }
        response.controls.response_body.push(Box::new(Compressor { encoder: Some(encoder), streamed }));
    }
}

impl Compression {
    fn worth_it(&self, response: &Response<'_>) -> bool {
        let headers = &response.head.headers;
        let status = response.head.status.as_u16();
        let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let no_transform = |v: &HeaderValue| v.to_str().is_ok_and(|v| v.to_ascii_lowercase().contains("no-transform"));
        !(status < 200
            || matches!(status, 204 | 205 | 206 | 304)
            || response.request.method == Method::HEAD
            // HTTP/1.0 has no chunked coding to carry a body of unknown length in.
            || response.request.version < Version::HTTP_11
            || headers.contains_key(CONTENT_ENCODING)
            || headers.contains_key(CONTENT_RANGE)
            || headers.get_all(CACHE_CONTROL).iter().any(no_transform)
            || length.is_some_and(|length| length < self.0.min_size.get()))
            && self.listed(headers)
    }

    fn listed(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
        let media = value.split(';').next().unwrap_or_default().trim();
        if media.eq_ignore_ascii_case("text/event-stream") {
            return false;
        }
        self.0.content_types.iter().any(|listed| match listed.strip_suffix('*') {
            Some(prefix) => media.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)),
            None => media.eq_ignore_ascii_case(listed),
        })
    }
}

/// The algorithm the client likes best (RFC 9110, section 12.5.3); `None` if it wants the answer as it is.
fn negotiate(headers: &HeaderMap, offered: &[Algorithm]) -> Option<Algorithm> {
    let mut best = None;
    let mut best_weight = 0.0;
    for &algorithm in offered {
        let weight = headers
            .get_all(ACCEPT_ENCODING)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .filter_map(|item| weight_of(item, algorithm))
            // A named coding says more than `*`.
            .max_by_key(|(named, _)| *named)
            .map_or(0.0, |(_, weight)| weight);
        if weight > best_weight {
            (best, best_weight) = (Some(algorithm), weight);
        }
    }
    best
}

/// The weight that one item of `Accept-Encoding` gives an algorithm, and whether it names it.
fn weight_of(item: &str, algorithm: Algorithm) -> Option<(bool, f32)> {
    let mut parts = item.split(';').map(str::trim);
    let coding = parts.next()?;
    let named = coding.eq_ignore_ascii_case(algorithm.token());
    if !named && coding != "*" {
        return None;
    }
    let weight = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
    Some((named, weight.map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0))))
}

struct Compressor {
    /// `None` once the body has ended.
    encoder: Option<Encoder>,
    streamed: bool,
}

impl BodyTransform for Compressor {
    fn chunk(&mut self, chunk: Bytes, last: bool) -> Result<Bytes> {
        let failed = |_: io::Error| Error::new(Reason::Internal);
        let Some(mut encoder) = self.encoder.take() else { return Ok(Bytes::new()) };
        encoder.write(&chunk).map_err(failed)?;
        if last {
            return encoder.finish().map(Bytes::from).map_err(failed);
        }
        if self.streamed && !chunk.is_empty() {
            encoder.flush().map_err(failed)?;
        }
        let ready = encoder.take();
        self.encoder = Some(encoder);
        Ok(ready.into())
    }
}

/// One of the three encoders, writing into memory.
enum Encoder {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Br(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(algorithm: Algorithm, level: u8) -> io::Result<Encoder> {
        const BROTLI_BUFFER: usize = 4096;
        /// 2^18 bytes of history: enough for documents, and small enough to have thousands at once.
        const BROTLI_WINDOW: u32 = 18;
        Ok(match algorithm {
            Algorithm::Gzip => {
                Encoder::Gzip(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level.into())))
            }
            Algorithm::Br => Encoder::Br(Box::new(brotli::CompressorWriter::new(
                Vec::new(),
                BROTLI_BUFFER,
                level.into(),
                BROTLI_WINDOW,
            ))),
            Algorithm::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(Vec::new(), level.into())?),
        })
    }

    fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => encoder.write_all(chunk),
            Encoder::Br(encoder) => encoder.write_all(chunk),
            Encoder::Zstd(encoder) => encoder.write_all(chunk),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Br(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }

    /// What has been encoded so far and not been taken yet.
    fn take(&mut self) -> Vec<u8> {
        match self {
            Encoder::Gzip(encoder) => std::mem::take(encoder.get_mut()),
            Encoder::Br(encoder) => std::mem::take(encoder.get_mut()),
            Encoder::Zstd(encoder) => std::mem::take(encoder.get_mut()),
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Br(encoder) => Ok(encoder.into_inner()),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn accept(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))])
    }

    #[test]
    fn the_client_decides_by_weight_and_then_the_order_offered() {
        let offered = [Algorithm::Zstd, Algorithm::Br, Algorithm::Gzip];
        for (value, expected) in [
            ("gzip, br, zstd", Some(Algorithm::Zstd)),
            ("gzip;q=1.0, br;q=0.5", Some(Algorithm::Gzip)),
            ("*", Some(Algorithm::Zstd)),
            ("*, zstd;q=0", Some(Algorithm::Br)),
            ("gzip;q=0", None),
            ("identity", None),
            ("", None),
            ("gzip;q=abc", None),
            ("GZIP", Some(Algorithm::Gzip)),
        ] {
            assert_eq!(negotiate(&accept(value), &offered), expected, "{value}");
        }
    }

    #[test]
    fn every_algorithm_gives_back_the_body_it_was_given() {
        let body: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 7).to_string().into_bytes()).collect();
        for algorithm in [Algorithm::Zstd, Algorithm::Br, Algorithm::Gzip] {
            for streamed in [false, true] {
                let mut compressor = Compressor { encoder: Some(Encoder::new(algorithm, 4).unwrap()), streamed };
                let mut encoded = Vec::new();
                for chunk in body.chunks(7001) {
                    encoded.extend(compressor.chunk(Bytes::copy_from_slice(chunk), false).unwrap());
                }
                encoded.extend(compressor.chunk(Bytes::new(), true).unwrap());
                let mut decoded = Vec::new();
                match algorithm {
                    Algorithm::Gzip => flate2::read::GzDecoder::new(&encoded[..]).read_to_end(&mut decoded).unwrap(),
                    Algorithm::Br => brotli::Decompressor::new(&encoded[..], 4096).read_to_end(&mut decoded).unwrap(),
                    Algorithm::Zstd => {
                        zstd::stream::read::Decoder::new(&encoded[..]).unwrap().read_to_end(&mut decoded).unwrap()
                    }
                };
                assert!(decoded == body, "{algorithm:?} streamed={streamed}");
                assert!(encoded.len() < body.len() / 2, "{algorithm:?} saves space");
            }
        }
    }

    #[test]
    fn a_streamed_answer_does_not_wait_in_the_encoder() {
        for algorithm in [Algorithm::Zstd, Algorithm::Br, Algorithm::Gzip] {
            let mut compressor = Compressor { encoder: Some(Encoder::new(algorithm, 4).unwrap()), streamed: true };
            let first = compressor.chunk(Bytes::from_static(b"{\"event\":1}\n"), false).unwrap();
            assert!(!first.is_empty(), "{algorithm:?} kept the first piece back");
        }
    }
}
