//! One request in is one request out: whatever two HTTP parsers could read differently is refused, and ends the connection.
//!
//! Judged by what the origin received, not by the status.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::gateway::EVERYTHING_TO_ORIGIN;
use crate::support::*;

/// What a smuggled request would ask for; the origin must never be asked for it.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: test.example\r\n\r\n";

/// `POST` with these header lines, and a body.
fn post(headers: &str, body: &str) -> Vec<u8> {
    format!("POST /vector HTTP/1.1\r\nHost: test.example\r\n{headers}\r\n\r\n{body}").into_bytes()
}

/// `POST` with a chunked body that is written by the vector, followed by what it would smuggle.
fn chunked(body: &str) -> Vec<u8> {
    post("Transfer-Encoding: chunked", &format!("{body}{SMUGGLED}"))
}

/// The same body, ended as a chunked reader and as a reader of 5 bytes would end it.
fn body_of(headers: &str) -> Vec<u8> {
    post(headers, &format!("0\r\n\r\n{SMUGGLED}"))
}

fn raw(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// A whole request with another start line.
fn start(line: &str) -> Vec<u8> {
    format!("{line}\r\nHost: test.example\r\n\r\n{SMUGGLED}").into_bytes()
}

/// Two lengths, or a length that is not one number.
fn lengths() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("length and chunked", body_of("Content-Length: 5\r\nTransfer-Encoding: chunked")),
        ("chunked and length", body_of("Transfer-Encoding: chunked\r\nContent-Length: 5")),
        ("length 0 and chunked", body_of("Content-Length: 0\r\nTransfer-Encoding: chunked")),
        ("two different lengths", body_of("Content-Length: 5\r\nContent-Length: 6")),
        ("two equal lengths", body_of("Content-Length: 5\r\nContent-Length: 5")),
        ("two equal lengths in other case", body_of("Content-Length: 5\r\ncontent-length: 5")),
        ("list of equal lengths", body_of("Content-Length: 5, 5")),
        ("list of different lengths", body_of("Content-Length: 5, 6")),
        ("length with a comma at its end", body_of("Content-Length: 5,")),
        ("positive length", body_of("Content-Length: +5")),
        ("negative length", body_of("Content-Length: -5")),
        ("negative zero length", body_of("Content-Length: -0")),
        ("hexadecimal length", body_of("Content-Length: 0x5")),
        ("length with an exponent", body_of("Content-Length: 5e0")),
        ("fractional length", body_of("Content-Length: 5.0")),
        ("length of two words", body_of("Content-Length: 5 5")),
        ("empty length", body_of("Content-Length: ")),
        ("length with a letter", body_of("Content-Length: 5a")),
        ("length with a parameter", body_of("Content-Length: 5;x")),
        ("quoted length", body_of("Content-Length: \"5\"")),
        ("length with an underscore", body_of("Content-Length: 0_5")),
        ("length beyond 64 bits", body_of("Content-Length: 18446744073709551621")),
        ("length with a vertical tab", body_of("Content-Length: \x0b5")),
        ("length with a form feed", body_of("Content-Length: 5\x0c")),
        ("length in full-width digits", body_of("Content-Length: ５")),
    ]
}

/// A transfer coding that some would take for chunked and others not.
fn codings() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("unknown coding", body_of("Transfer-Encoding: xchunked")),
        ("cut coding", body_of("Transfer-Encoding: chunk")),
        ("identity", body_of("Transfer-Encoding: identity")),
        ("identity after chunked", body_of("Transfer-Encoding: chunked, identity")),
        ("identity before chunked", body_of("Transfer-Encoding: identity, chunked")),
        ("gzip before chunked", body_of("Transfer-Encoding: gzip, chunked")),
        ("gzip alone", body_of("Transfer-Encoding: gzip")),
        ("chunked twice in a list", body_of("Transfer-Encoding: chunked, chunked")),
        ("chunked twice in two lines", body_of("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked")),
        ("chunked and another line", body_of("Transfer-Encoding: chunked\r\nTransfer-encoding: x")),
        ("another line and chunked", body_of("Transfer-Encoding: x\r\nTransfer-encoding: chunked")),
        ("empty element first", body_of("Transfer-Encoding: ,chunked")),
        ("empty element last", body_of("Transfer-Encoding: chunked,")),
        ("empty coding", body_of("Transfer-Encoding: ")),
        ("quoted coding", body_of("Transfer-Encoding: \"chunked\"")),
        ("coding with a parameter", body_of("Transfer-Encoding: chunked;x=y")),
        ("coding after a vertical tab", body_of("Transfer-Encoding: \x0bchunked")),
        ("coding before a vertical tab", body_of("Transfer-Encoding: chunked\x0b")),
        ("coding with a no-break space", body_of("Transfer-Encoding: chunked\u{a0}")),
        (
            "chunked in HTTP/1.0",
            raw(&format!(
                "POST /vector HTTP/1.0\r\nHost: test.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            )),
        ),
    ]
}

/// Header sections whose lines end, or begin, where they should not.
fn lines() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("space before the colon of a coding", body_of("Transfer-Encoding : chunked")),
        ("tab before the colon of a coding", body_of("Transfer-Encoding\t: chunked")),
        ("space before the colon of a length", body_of("Content-Length : 5")),
        ("space before the colon of anything", body_of("X-Any : 5")),
        ("folded coding", body_of("Transfer-Encoding:\r\n chunked")),
        ("folded value", body_of("X: a\r\n b")),
        ("value folded with a tab", body_of("X: a\r\n\tb")),
        ("space before the first field", raw("GET /vector HTTP/1.1\r\n Host: test.example\r\n\r\n")),
        ("bare LF everywhere", raw("GET /vector HTTP/1.1\nHost: test.example\n\n")),
        ("bare LF after the request line", raw("GET /vector HTTP/1.1\nHost: test.example\r\n\r\n")),
        ("bare LF after a field", body_of("X: y\nTransfer-Encoding: chunked")),
        (
            "bare LF as the empty line",
            raw("GET /vector HTTP/1.1\r\nHost: test.example\r\n\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"),
        ),
        ("bare CR in a value", body_of("X: a\rTransfer-Encoding: chunked")),
        ("bare CR before CRLF", body_of("X: a\r\r")),
        ("NUL in a value", body_of("X: a\0b")),
        ("NUL in a name", body_of("Content-Length\0: 5")),
        ("NUL before a name", body_of("\0Content-Length: 5")),
        ("control character in a name", body_of("Content-\x01Length: 5")),
        ("bracket in a name", body_of("X(y): 5")),
        ("non-ASCII in a name", body_of("Content-Lengthé: 5")),
        ("no colon", body_of("Transfer-Encoding chunked")),
        ("no name", body_of(": chunked")),
        ("only a space as a line", body_of(" ")),
    ]
}

/// Chunked bodies that end at different places for different readers.
fn chunks() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("chunk size 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n")),
        ("positive chunk size", chunked("+5\r\nhello\r\n0\r\n\r\n")),
        ("negative chunk size", chunked("-5\r\nhello\r\n0\r\n\r\n")),
        ("space before a chunk size", chunked(" 5\r\nhello\r\n0\r\n\r\n")),
        ("space after a chunk size", chunked("5 \r\nhello\r\n0\r\n\r\n")),
        ("tab after a chunk size", chunked("5\t\r\nhello\r\n0\r\n\r\n")),
        ("chunk size beyond 64 bits", chunked("10000000000000005\r\nhello\r\n0\r\n\r\n")),
        ("empty chunk size", chunked("\r\nhello\r\n0\r\n\r\n")),
        ("chunk size of a letter too far", chunked("g\r\nhello\r\n0\r\n\r\n")),
        ("chunk size with an underscore", chunked("0_5\r\nhello\r\n0\r\n\r\n")),
        ("bare LF after a chunk size", chunked("5\nhello\r\n0\r\n\r\n")),
        ("bare LF in a chunk extension", chunked("5;x\nhello\r\n0\r\n\r\n")),
        ("bare CR in a chunk extension", chunked("5;x\ry\r\nhello\r\n0\r\n\r\n")),
        ("chunk longer than its size", chunked("5\r\nhello!\r\n0\r\n\r\n")),
        ("chunk shorter than its size", chunked("5\r\nhell\r\n0\r\n\r\n")),
        ("bare LF after a chunk", chunked("5\r\nhello\n0\r\n\r\n")),
        ("bare CR after a chunk", chunked("5\r\nhello\r0\r\n\r\n")),
        ("two bytes instead of CRLF after a chunk", chunked("5\r\nhelloxx0\r\n\r\n")),
        ("endless chunk extension", chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(100_000)))),
        ("bare LF after the last chunk", chunked("5\r\nhello\r\n0\n\r\n")),
        ("trailer without a colon", chunked("5\r\nhello\r\n0\r\n")),
        ("trailer with a space before its colon", chunked("0\r\nX : y\r\n\r\n")),
        ("folded trailer", chunked("0\r\nX: y\r\n z\r\n\r\n")),
    ]
}

/// Start lines and hosts with more than one reading.
fn starts() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("two spaces after the method", start("GET  /vector HTTP/1.1")),
        ("two spaces after the target", start("GET /vector  HTTP/1.1")),
        ("tab after the method", start("GET\t/vector HTTP/1.1")),
        ("tab after the target", start("GET /vector\tHTTP/1.1")),
        ("space before the method", start(" GET /vector HTTP/1.1")),
        ("space at the end of the line", start("GET /vector HTTP/1.1 ")),
        ("space in the target", start("GET /vector x HTTP/1.1")),
        ("HTTP/0.9", raw("GET /vector\r\n\r\n")),
        ("HTTP/0.9 with a version", start("GET /vector HTTP/0.9")),
        ("lower-case protocol", start("GET /vector http/1.1")),
        ("version 1.10", start("GET /vector HTTP/1.10")),
        ("version 01.1", start("GET /vector HTTP/01.1")),
        ("version 3.7", start("GET /vector HTTP/3.7")),
        ("version without a dot", start("GET /vector HTTP/11")),
        ("other protocol", start("GET /vector ICAP/1.0")),
        ("illegal method", start("G@T /vector HTTP/1.1")),
        ("no method", start(" /vector HTTP/1.1")),
        ("NUL in the method", start("GE\0T /vector HTTP/1.1")),
        ("NUL in the target", start("GET /vector\0 HTTP/1.1")),
        ("control character in the target", start("GET /vec\x01tor HTTP/1.1")),
        ("DEL in the target", start("GET /vec\x7ftor HTTP/1.1")),
        ("CR in the target", start("GET /vec\rtor HTTP/1.1")),
        ("no host", raw("GET /vector HTTP/1.1\r\nX: y\r\n\r\n")),
        ("two hosts", start("GET /vector HTTP/1.1\r\nHost: other.example")),
        ("two equal hosts", start("GET /vector HTTP/1.1\r\nHost: test.example")),
        ("TLS instead of HTTP", raw("\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03vector\r\n\r\n")),
    ]
}

/// Sends a vector on a connection of its own; describes what was wrong, if anything.
async fn refusal_problem(gateway: &Gateway, name: &str, bytes: &[u8]) -> Option<String> {
    let (answers, closed) = gateway.connect().await.provoke(bytes, Duration::from_secs(3)).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    match (statuses.as_slice(), closed) {
        // No answer at all is right too, where the request was already on its way when its body turned bad.
        ([] | [400..=599], true) => None,
        (_, true) => Some(format!("{name}: answered {statuses:?}")),
        (_, false) => Some(format!("{name}: answered {statuses:?} and left the connection open")),
    }
}

async fn assert_refused(vectors: Vec<(&'static str, Vec<u8>)>) {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    let problems = join_all(vectors.iter().map(|(name, bytes)| refusal_problem(&gateway, name, bytes))).await;
    let mut problems: Vec<String> = problems.into_iter().flatten().collect();
    let arrived = origin.requests().into_iter().map(|request| String::from_utf8_lossy(&request.head).into_owned());
    problems.extend(arrived.map(|head| format!("the origin received {head:?}")));
    problems.extend(origin.violations());
    assert!(problems.is_empty(), "{} of {} vectors:\n{}", problems.len(), vectors.len(), problems.join("\n"));
    assert_eq!(gateway.get("/after").await.status, 200, "other clients are unharmed");
}

#[tokio::test]
async fn ambiguous_lengths_are_refused() {
    assert_refused(lengths()).await;
}

#[tokio::test]
async fn ambiguous_transfer_codings_are_refused() {
    assert_refused(codings()).await;
}

#[tokio::test]
async fn ambiguous_header_lines_are_refused() {
    assert_refused(lines()).await;
}

#[tokio::test]
async fn ambiguous_chunks_are_refused() {
    assert_refused(chunks()).await;
}

#[tokio::test]
async fn ambiguous_request_lines_and_hosts_are_refused() {
    assert_refused(starts()).await;
}

/// Vectors refused when cut into single bytes prove that strictness does not depend on how reads fall.
#[tokio::test]
async fn refusal_does_not_depend_on_how_bytes_arrive() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    let vectors: Vec<_> =
        lengths().into_iter().take(3).chain(codings().into_iter().take(3)).chain(lines().into_iter().take(3)).collect();
    let gateway = &gateway;
    let problems = join_all(vectors.iter().map(|(name, bytes)| async move {
        let mut client = gateway.connect().await;
        for byte in bytes {
            if client.send([*byte]).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let (answers, closed) = client.provoke(b"", Duration::from_secs(3)).await;
        let refused = closed && answers.iter().all(|answer| answer.status >= 400);
        (!refused).then(|| format!("{name}: {:?}", answers.iter().map(|answer| answer.status).collect::<Vec<_>>()))
    }))
    .await;
    let problems: Vec<String> = problems.into_iter().flatten().collect();
    assert!(problems.is_empty() && origin.requests().is_empty(), "{problems:#?} {:#?}", origin.requests());
}

/// Requests with one reading that are refused all the same, and legal ones at the edge of what is read.
fn edges() -> Vec<(String, Vec<u8>)> {
    let with = |name: &str, line: &str, headers: &str| {
        (
            name.to_owned(),
            format!("{line} HTTP/1.1\r\nHost: test.example\r\nConnection: close\r\n{headers}\r\n").into_bytes(),
        )
    };
    let mut edges = vec![
        with("CONNECT", "CONNECT test.example:443", ""),
        with("CONNECT with a path", "CONNECT /", ""),
        with("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET /", ""),
        with("host of another", "GET http://other.example/", ""),
        with("user in the target", "GET http://user@test.example/", ""),
        with("target of another scheme", "GET ftp://test.example/", ""),
        with("target without a slash", "GET vector", ""),
        with("long target", &format!("GET /{}", "x".repeat(20_000)), ""),
        with("very long target", &format!("GET /{}", "x".repeat(66_000)), ""),
        with("endless target", &format!("GET /{}", "x".repeat(200_000)), ""),
        with("long header name", "GET /", &format!("{}: y\r\n", "x".repeat(40_000))),
        with("many headers", "GET /", &"x: y\r\n".repeat(150)),
        with("very many headers", "GET /", &"x: y\r\n".repeat(1000)),
        with("endless headers", "GET /", &"x: y\r\n".repeat(20_000)),
        ("user in the host".to_owned(), b"GET / HTTP/1.1\r\nHost: user@test.example\r\n\r\n".to_vec()),
    ];
    for byte in (0x21..0x7f).map(char::from) {
        edges.push(with(&format!("{byte:?} in the path"), &format!("GET /{byte}{byte}"), ""));
        edges.push(with(&format!("{byte:?} in the query"), &format!("GET /?{byte}{byte}"), ""));
        if byte.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(byte) {
            edges.push(with(&format!("{byte:?} in the method"), &format!("{byte}X /"), ""));
            edges.push(with(&format!("{byte:?} in a name"), "GET /", &format!("{byte}x: y\r\n")));
        }
    }
    edges
}

/// Nothing is refused behind the gateway's back: each answer has the id that its record has, and says why.
#[tokio::test]
async fn every_refusal_is_answered_recorded_and_counted() {
    let origin = Origin::named("a").await;
    let yaml =
        format!("access_log: {{ to: {{ file: '{{{{dir}}}}/access.log' }}, format: json }}\n{EVERYTHING_TO_ORIGIN}");
    let gateway = Gateway::builder(&yaml).origin(&origin).start().await;
    let named = |(name, bytes): (&str, Vec<u8>)| (name.to_owned(), bytes);
    let vectors: Vec<_> = [lengths(), codings(), lines(), starts(), chunks()].concat().into_iter().map(named).collect();
    let vectors: Vec<_> = vectors.into_iter().chain(edges()).collect();
    let provoked = join_all(vectors.into_iter().map(|(name, bytes)| {
        let gateway = &gateway;
        async move { (name, gateway.connect().await.provoke(&bytes, Duration::from_secs(10)).await.0) }
    }));
    let (mut problems, mut ids) = (Vec::new(), Vec::new());
    for (name, answers) in provoked.await {
        let Some(answer) = answers.first() else {
            problems.push(format!("{name}: no answer"));
            continue;
        };
        let said = answer.status == 200 || answer.header("content-type") == Some("application/problem+json");
        match answer.header("x-request-id") {
            Some(id) if said && answer.status < 500 => ids.push((name, id.to_owned(), answer.status)),
            _ => problems.push(format!("{name}: {} {:?} {}", answer.status, answer.headers, answer.text())),
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let records = gateway.access_log(ids.len()).await;
    for (name, id, status) in &ids {
        let record = records.iter().find(|record| record["request_id"] == id.as_str());
        let record = record.unwrap_or_else(|| panic!("{name}: no record"));
        assert_eq!(
            (&record["status"], &record["client"]),
            (&(*status).into(), &"127.0.0.1".into()),
            "{name}: {record}"
        );
        assert_eq!(record["reason"].is_string(), *status >= 400, "{name}: {record}");
    }
    assert_eq!(records.len(), ids.len(), "one record for each request");
    let refused = records.iter().filter(|record| record["reason"] == "bad_request").count();
    assert_eq!(gateway.metric("headgate_gateway_answers_total", &[("reason", "bad_request")]).await, refused as f64);
}

struct Legal {
    name: &'static str,
    bytes: Vec<u8>,
    /// The bodies that must reach the origin, one for each request.
    bodies: &'static [&'static str],
}

fn legal(name: &'static str, bytes: impl Into<Vec<u8>>, bodies: &'static [&'static str]) -> Legal {
    Legal { name, bytes: bytes.into(), bodies }
}

fn legal_framings() -> Vec<Legal> {
    let get = "GET /legal HTTP/1.1\r\nHost: test.example\r\n\r\n";
    vec![
        legal("plain GET", get, &[""]),
        legal("two GETs in one segment", get.repeat(2), &["", ""]),
        legal("five GETs in one segment", get.repeat(5), &["", "", "", "", ""]),
        legal("length 0", post("Content-Length: 0", ""), &[""]),
        legal("length 5", post("Content-Length: 5", "hello"), &["hello"]),
        legal("spaces around a length", post("Content-Length:   5  ", "hello"), &["hello"]),
        legal("tabs around a length", post("Content-Length:\t5\t", "hello"), &["hello"]),
        legal("no space after the colon", post("Content-Length:5", "hello"), &["hello"]),
        legal("upper-case name", post("CONTENT-LENGTH: 5", "hello"), &["hello"]),
        legal("POST and GET in one segment", [post("Content-Length: 5", "hello"), get.into()].concat(), &["hello", ""]),
        legal(
            "body that looks like a request",
            post("Content-Length: 30", "GET / HTTP/1.1\r\nHost: a.bc\r\n\r\n"),
            &["GET / HTTP/1.1\r\nHost: a.bc\r\n\r\n"],
        ),
        legal("one chunk", post("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"), &["hello"]),
        legal("two chunks", post("Transfer-Encoding: chunked", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), &["hello"]),
        legal("no chunk", post("Transfer-Encoding: chunked", "0\r\n\r\n"), &[""]),
        legal(
            "chunk size in upper-case hexadecimal",
            post("Transfer-Encoding: chunked", "A\r\nhellohello\r\n0\r\n\r\n"),
            &["hellohello"],
        ),
        legal(
            "chunk size in lower-case hexadecimal",
            post("Transfer-Encoding: chunked", "a\r\nhellohello\r\n0\r\n\r\n"),
            &["hellohello"],
        ),
        legal(
            "chunk size with leading zeros",
            post("Transfer-Encoding: chunked", "0005\r\nhello\r\n0\r\n\r\n"),
            &["hello"],
        ),
        legal("chunk extension", post("Transfer-Encoding: chunked", "5;a=b\r\nhello\r\n0;c\r\n\r\n"), &["hello"]),
        legal("trailers", post("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"), &["hello"]),
        legal(
            "chunked and GET in one segment",
            [post("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"), get.into()].concat(),
            &["hello", ""],
        ),
        legal(
            "GET with a body",
            "GET /legal HTTP/1.1\r\nHost: test.example\r\nContent-Length: 5\r\n\r\nhello".to_owned() + get,
            &["*", ""],
        ),
        legal(
            "DELETE with a body",
            "DELETE /legal HTTP/1.1\r\nHost: test.example\r\nContent-Length: 5\r\n\r\nhello",
            &["hello"],
        ),
        legal(
            "PUT with chunks",
            "PUT /legal HTTP/1.1\r\nHost: test.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            &["hello"],
        ),
        legal("OPTIONS", "OPTIONS /legal HTTP/1.1\r\nHost: test.example\r\n\r\n", &[""]),
        legal("a method of one's own", "PURGE-9 /legal HTTP/1.1\r\nHost: test.example\r\n\r\n", &[""]),
        legal("HTTP/1.0", "GET /legal HTTP/1.0\r\nHost: test.example\r\n\r\n", &[""]),
        legal(
            "HTTP/1.0 with a length",
            "POST /legal HTTP/1.0\r\nHost: test.example\r\nContent-Length: 5\r\n\r\nhello",
            &["hello"],
        ),
        legal("absolute target", "GET http://test.example/legal HTTP/1.1\r\nHost: test.example\r\n\r\n", &[""]),
        legal("empty value", "GET /legal HTTP/1.1\r\nHost: test.example\r\nX-Empty:\r\n\r\n", &[""]),
        legal("close after it", "GET /legal HTTP/1.1\r\nHost: test.example\r\nConnection: close\r\n\r\n", &[""]),
        legal("expectation", post("Content-Length: 5\r\nExpect: 100-continue", "hello"), &["hello"]),
        legal(
            "colons and brackets in a value",
            "GET /legal HTTP/1.1\r\nHost: test.example\r\nX: a: (b) \"c\"\r\n\r\n",
            &[""],
        ),
    ]
}

async fn legal_problem(gateway: &Gateway, origin: &Origin, case: &Legal, piece: usize) -> Option<String> {
    let before = origin.count();
    let mut client = gateway.connect().await;
    for part in case.bytes.chunks(piece) {
        if let Err(error) = client.send(part).await {
            return Some(format!("{}: {error} while sending", case.name));
        }
    }
    for _ in case.bodies {
        match client.answer().await {
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) => return Some(format!("{}: answered {} {}", case.name, answer.status, answer.text())),
            Err(error) => return Some(format!("{}: {error}", case.name)),
        }
    }
    let arrived = origin.requests().split_off(before);
    let bodies: Vec<String> =
        arrived.iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
    // "*": whether a body that has no meaning is forwarded is the gateway's choice; that it is framed is not.
    let same = bodies.len() == case.bodies.len()
        && bodies.iter().zip(case.bodies).all(|(got, want)| *want == "*" || got == want);
    (!same).then(|| format!("{}: the origin got the bodies {bodies:?}", case.name))
}

async fn assert_legal_framings_pass(piece: usize) {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    let mut problems = Vec::new();
    let cases = legal_framings();
    for case in &cases {
        problems.extend(legal_problem(&gateway, &origin, case, piece).await);
    }
    problems.extend(origin.violations());
    assert!(problems.is_empty(), "{} of {} legal framings:\n{}", problems.len(), cases.len(), problems.join("\n"));
}

#[tokio::test]
async fn legal_framings_pass() {
    assert_legal_framings_pass(usize::MAX).await;
}

#[tokio::test]
async fn legal_framings_pass_byte_by_byte() {
    assert_legal_framings_pass(1).await;
}

#[tokio::test]
async fn framing_headers_named_in_connection_are_still_obeyed() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    for (headers, body) in [
        ("Connection: Content-Length\r\nContent-Length: 5", "hello"),
        ("Connection: close, Transfer-Encoding\r\nTransfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("Connection: Host\r\nContent-Length: 5", "hello"),
    ] {
        gateway.connect().await.provoke(&post(headers, body), Duration::from_millis(500)).await;
    }
    for request in origin.requests() {
        assert_eq!(request.body, b"hello", "a body must not become a request");
        assert!(request.headers.has("host"));
    }
    assert_eq!(origin.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn dangerous_trailers_are_dropped() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    let trailers = "Content-Length: 9\r\nHost: evil.example\r\nAuthorization: x\r\nX-Forwarded-For: 6.6.6.6\r\nTransfer-Encoding: chunked";
    let mut client = gateway.connect().await;
    client.send(post("Transfer-Encoding: chunked", &format!("2\r\nhi\r\n0\r\n{trailers}\r\n\r\n"))).await.unwrap();
    // Refusing them is as good as dropping them.
    if client.answer().await.is_ok_and(|answer| answer.status == 200) {
        let request = origin.last().await;
        assert_eq!(request.trailers.0, Vec::new());
        assert!(!request.headers.has("authorization"));
        assert_eq!(request.headers.get("host"), Some("test.example"));
    }
    assert_eq!(origin.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_refused_upgrade_opens_no_tunnel() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    let head = "GET /up HTTP/1.1\r\nHost: test.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let after = "GET /private%2f HTTP/1.1\r\nHost: test.example\r\n\r\n";
    gateway.connect().await.provoke(format!("{head}{after}").as_bytes(), Duration::from_secs(1)).await;
    let targets: Vec<String> = origin.requests().into_iter().map(|request| request.target).collect();
    assert!(
        targets.iter().all(|target| target == "/up"),
        "bytes after a refused upgrade bypassed the gateway: {targets:?}"
    );
}

#[tokio::test]
async fn a_refused_body_is_never_read_as_the_next_request() {
    let origin = Origin::named("a").await;
    let yaml = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services:
  s:
    routes:
      open: { match: { path_prefix: / }, backend: { upstream: origin } }
      closed: { match: { path: /closed }, filters: [{ ip_restriction: { deny: [127.0.0.1] } }], backend: { upstream: origin } }
";
    let gateway = Gateway::builder(yaml).origin(&origin).start().await;
    let with_length = Call::post("/closed", SMUGGLED).bytes();
    let with_chunks = format!(
        "POST /closed HTTP/1.1\r\nHost: test.example\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n",
        SMUGGLED.len()
    );
    for bytes in [with_length, with_chunks.into_bytes()] {
        let (answers, _) = gateway.connect().await.provoke(&bytes, Duration::from_millis(500)).await;
        assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [403]);
    }
    assert!(origin.requests().is_empty(), "{:#?}", origin.requests());
}
